"""Comparator `proseg`: Proseg (Jones et al., Nature Methods 2025), a probabilistic model of cells on voxels, run once per sample in the plane.

Version 3 takes no seed: two runs give different cells.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from shapely.geometry import shape

from istseg.comparators import Surroundings
from istseg.comparators.neutral import Collected, Prepared, hulls
from istseg.comparators.programs import missing
from istseg.errors import InputError

TRANSCRIPTS, POLYGONS, VERSION = "transcripts.parquet", "cells.geojson.gz", "version.txt"
_COLUMNS = ["transcript_id", "observed_x", "observed_y", "assignment", "background"]


def problems(surroundings: Surroundings) -> list[str]:
    """The program is there."""
    return missing(surroundings.programs, "proseg/bin/proseg")


def collect(raw: Path, prepared: Prepared) -> Collected:
    """Read the transcript metadata and the polygons of Proseg 3.

    Cells are numbered from 1. A transcript that Proseg puts down to background is no cell's, as in its counts. Cells that hold transcripts and no voxel get the
    hull of their transcripts.

    Parameters
    ----------
    raw
        Folder with `transcripts.parquet` (`--output-transcript-metadata`), `cells.geojson.gz` (`--output-cell-polygons`) and `version.txt`.

    Raises
    ------
    InputError
        If a file is missing or is not of this form.
    """
    table = _transcripts(raw / TRANSCRIPTS)
    table = table.filter(pc.and_(pc.is_valid(table["assignment"]), pc.invert(table["background"])))
    cells = table["assignment"].to_numpy().astype(np.int64) + 1
    outlines = {cell + 1: polygon for cell, polygon in _polygons(raw / POLYGONS).items()}
    bare = ~np.isin(cells, [cell for cell, polygon in outlines.items() if not polygon.is_empty])
    xy = np.column_stack([table["observed_x"], table["observed_y"]]).astype(float)
    outlines |= hulls(xy[bare], cells[bare])
    warnings = (
        [f"{len(np.unique(cells[bare]))} cells of proseg hold transcripts but no voxel: their outline is the hull of the transcripts."] if bare.any() else []
    )
    return Collected(outlines, table["transcript_id"].to_numpy().astype(np.int64), cells, {"program": _version(raw / VERSION)}, warnings)


def _transcripts(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, columns=_COLUMNS)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it should be Proseg's transcript metadata. Did proseg end well?") from None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: is not the transcript metadata of Proseg 3 ({error}).") from None


def _polygons(path: Path) -> dict[int, Any]:
    """Cell (from 0) → multi-polygon, µm."""
    try:
        with gzip.open(path, "rt") as stream:
            features = json.load(stream)["features"]
        return {int(f["properties"]["cell"]): shape(f["geometry"]) for f in features}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it should be Proseg's cell polygons. Did proseg end well?") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, shapely.errors.ShapelyError) as error:
        raise InputError(f"{path}: are not the cell polygons of Proseg 3 ({type(error).__name__}: {error}). Was the file cut off?") from None


def _version(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else "unknown"
