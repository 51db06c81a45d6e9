"""Stage `export`: the result in the formats of other tools.

In: the sample's store, the merged cells and nuclei, the assessed counts, the assigned transcripts.
Out: `<sample>.zarr` (spatialdata), `<sample>.geojson`, `vizgen/`, `cosmx/`, `<sample>.labels.ome.tif`, `explorer/`, as asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from istseg.errors import InputError
from istseg.export.result import Result

log = logging.getLogger(__name__)


def _spatialdata(result: Result, out: Path) -> None:
    from istseg.export import store

    store.write(result, out / f"{result.sample.sample}.zarr")


def _geojson(result: Result, out: Path) -> None:
    from istseg.export import geojson

    geojson.write(result, out / f"{result.sample.sample}.geojson")


def _vizgen(result: Result, out: Path) -> None:
    from istseg.export import vizgen

    vizgen.write(result, out / "vizgen")


def _cosmx(result: Result, out: Path) -> None:
    from istseg.export import cosmx

    cosmx.write(result, out / "cosmx")


def _ometiff(result: Result, out: Path) -> None:
    from istseg.export import ometiff

    ometiff.write(result, out / f"{result.sample.sample}.labels.ome.tif")


def _explorer(result: Result, out: Path) -> None:
    from istseg.export import explorer

    explorer.write(result, out / "explorer")


FORMATS: dict[str, Callable[[Result, Path], None]] = {
    "spatialdata": _spatialdata,
    "geojson": _geojson,
    "vizgen": _vizgen,
    "cosmx": _cosmx,
    "ometiff": _ometiff,
    "explorer": _explorer,
}


def run(sample_json: Path, zarr: Path, merged: Path, assessed: Path, transcripts: Path, out: Path, formats: list[str]) -> None:
    """Write every format asked for.

    Parameters
    ----------
    formats
        Of `FORMATS`.

    Raises
    ------
    InputError
        If a format is unknown, none is asked for, or the inputs do not belong together.

    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown or not formats:
        raise InputError([f"--formats: {name!r} is not known; choose from {', '.join(FORMATS)}." for name in unknown] or "--formats: names no format.")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    result = Result.read(sample_json, zarr, merged, assessed, transcripts)
    for name in dict.fromkeys(formats):
        log.info("%s: writing %s", result.sample.sample, name)
        FORMATS[name](result, out)
