"""A result in napari."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from istseg.errors import InputError, IstsegError


def run(*, folder: Path) -> None:
    """Open the SpatialData of a sample in napari; comes back when its window is closed.

    Parameters
    ----------
    folder
        Results of one sample (`<outdir>/<sample>`), or a `.zarr` of SpatialData.

    Raises
    ------
    InputError
        If there is no SpatialData.
    IstsegError
        If napari is not installed.
    """
    store = store_of(folder)
    missing = [name for name in ("napari", "napari_spatialdata") if find_spec(name) is None]
    if missing:
        raise IstsegError(
            f"{' and '.join(missing).replace('_', '-')} is not installed here. In an environment of your own: `pip install 'napari[all]' napari-spatialdata`; "
            f"then `python -m napari_spatialdata view {store}`, or this command again."
        )
    from napari_spatialdata import Interactive
    from spatialdata import read_zarr

    Interactive(read_zarr(store))


def store_of(folder: Path) -> Path:
    """The store of a results folder.

    Raises
    ------
    InputError
        If there is none, or more than one.
    """
    if folder.suffix == ".zarr" and folder.is_dir():
        return folder
    found = sorted((folder / "exports").glob("*.zarr"))
    if len(found) != 1:
        what = f"several stores ({', '.join(p.name for p in found)})" if found else "no SpatialData"
        raise InputError(f"{folder}: holds {what}; give the results of one sample that was exported with `--exports spatialdata`, or a .zarr.")
    return found[0]
