"""A result in napari."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from istseg.errors import InputError, IstsegError
from istseg.report import palette

_WINDOW = Path(__file__).with_name("napari_window.py")
_SHOWN = ("images/stains", "points/transcripts", "tables/table")
_ABSENT = """
import importlib.util
print(*[name.replace("_", "-") for name in ("napari", "napari_spatialdata", "qtpy") if importlib.util.find_spec(name) is None])
"""


def run(*, folder: Path, python: Path | None = None, picture: Path | None = None) -> None:
    """Open the SpatialData of a sample in napari; comes back when its window is closed.

    Parameters
    ----------
    folder
        Results of one sample (`<outdir>/<sample>`), or a `.zarr` of SpatialData.
    python
        Python of an environment with napari; None: this one.
    picture
        PNG of the window to write; nobody has to close it then.

    Raises
    ------
    InputError
        If there is no SpatialData of a result, or no such Python.
    IstsegError
        If napari is not installed, or ended with an error.
    """
    store = store_of(folder)
    if missing := [part for part in _SHOWN if not (store / part).is_dir()]:
        raise InputError(f"{store}: has no {' and no '.join(missing)}; give a store that `--exports spatialdata` or `istseg export` wrote.")
    program = str(python or sys.executable)
    try:
        asked = subprocess.run([program, "-c", _ABSENT], capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"--python {program}: cannot be started ({error.strerror}); give the program, e.g. `napari/bin/python`.") from error
    if asked.returncode or asked.stdout.strip():
        what = " and ".join(asked.stdout.split()) or "napari"
        raise IstsegError(
            f"{what} is not installed for {program}. Make an environment for it: `python3 -m venv napari`, `napari/bin/pip install napari-spatialdata pyqt6`; "
            f"then `istseg view {folder} --python napari/bin/python`."
        )
    # In the table they would be text, and numpy 2.0 crashes when it copies text that zarr has read.
    colours = ["--colours", json.dumps(palette.FLAGS)]
    shown = subprocess.run([program, str(_WINDOW), str(store), *colours, *(["--picture", str(picture)] if picture else [])])
    if shown.returncode:
        raise IstsegError(
            f"napari ended with exit status {shown.returncode}; what it said stands above. Without a screen: `xvfb-run istseg view ... --picture FILE`."
        )


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
