"""Comparator `baysor`: Baysor (Petukhov et al., Nature Biotechnology 2022) with nuclei as prior, confidence 1, as in the paper.

The program is the user's (`--baysor`, or the container); the formats read here are those that version 0.7.1 documents.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import shapely
from shapely.geometry import shape

from istseg.comparators import Surroundings
from istseg.comparators.neutral import Collected, Prepared, hulls
from istseg.errors import InputError

BAYSOR_VERSION = "0.7.1"
"""Whose formats are read."""
SEGMENTATION, POLYGONS = "segmentation.csv", "segmentation_polygons_2d.json"
_LEAST = 3
"""Molecules that a polygon needs."""
_COLUMNS = ["transcript_id", "x", "y", "cell", "is_noise"]


def problems(surroundings: Surroundings) -> list[str]:
    """The executable is there, unless it has its container."""
    if surroundings.programs is None:
        return []
    path = surroundings.params.get("baysor")
    advice = f"Unpack Baysor {BAYSOR_VERSION} from its release page and give the path of its bin/baysor with --baysor, or use a profile with containers."
    if not path:
        return [f"needs --baysor, the executable. {advice}"]
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        return [f"--baysor {path} is no file that can be executed. {advice}"]
    return []


def collect(raw: Path, prepared: Prepared) -> Collected:
    """Read the molecules and polygons of Baysor 0.7.

    Cells are numbered from 1 in the order of their names. Cells of fewer than three molecules get the hull of theirs: version 0.7.0 draws no polygon around
    them, 0.7.1 a crossed one of no width. A polygon around no molecule is no cell: Baysor's own table of cells leaves those out, too.

    Parameters
    ----------
    raw
        Folder with `segmentation.csv` (the input's columns, `cell`, empty for noise, and `is_noise`) and `segmentation_polygons_2d.json` (a FeatureCollection
        whose features have the cell's name as `id`).

    Raises
    ------
    InputError
        If a file is missing or is not of this form.
    """
    table = _molecules(raw / SEGMENTATION)
    polygons = _polygons(raw / POLYGONS)
    names = sorted(pc.unique(table["cell"]).to_pylist())
    cells = pc.index_in(table["cell"], pa.array(names, pa.string())).to_numpy().astype(np.int64) + 1
    molecules = np.bincount(cells, minlength=len(names) + 1)
    outlines = {i: polygons[name] for i, name in enumerate(names, start=1) if name in polygons and molecules[i] >= _LEAST}
    xy = np.column_stack([table["x"], table["y"]]).astype(float).reshape(-1, 2)
    bare = ~np.isin(cells, list(outlines))
    outlines |= hulls(xy[bare], cells[bare])
    return Collected(outlines, table["transcript_id"].to_numpy().astype(np.int64), cells, {"formats_of": BAYSOR_VERSION})


def _molecules(path: Path) -> Any:
    """Molecules in cells."""
    text = csv.ConvertOptions(
        include_columns=_COLUMNS, column_types={"cell": "string", "is_noise": "bool"}, true_values=["true", "1"], false_values=["false", "0"]
    )
    try:
        table = csv.read_csv(path, convert_options=text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it should be Baysor's molecules. Did baysor end well?") from None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: is not the segmentation.csv of Baysor {BAYSOR_VERSION} ({error}).") from None
    return table.filter(pc.and_(pc.invert(table["is_noise"]), pc.not_equal(table["cell"], "")))


def _polygons(path: Path) -> dict[str, Any]:
    """Name of a cell → polygon in µm."""
    try:
        features = json.loads(path.read_text())["features"]
        return {str(f["id"]): shape(f["geometry"]) for f in features}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it should be Baysor's polygons. Did baysor end well?") from None
    except (OSError, ValueError, KeyError, TypeError, shapely.errors.ShapelyError) as error:
        raise InputError(f"{path}: are not the polygons of Baysor {BAYSOR_VERSION} ({type(error).__name__}: {error}). Was the file cut off?") from None
