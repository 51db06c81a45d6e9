"""The neutral form of a sample that foreign programs are given, whatever their own format, and the form in which their results come back.

A folder holds `transcripts.csv` (`transcript_id`, `x`, `y`, `z`, `gene`, `prior`; µm; z is 0: all is judged in the plane; genes only, no control probes),
`prior.csv` (`prior`, `x`, `y`: centroids), `prior.cells.parquet` (the same objects with their outlines) and `prepared.json`. `prior` numbers the objects that
the program starts from, nuclei or cells, from 1; 0 is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import shapely

from istseg.artifacts import cells as cells_file
from istseg.artifacts.files import read_record, whole, write_json
from istseg.artifacts.sample import Sample
from istseg.artifacts.spatial import transcript_batches
from istseg.errors import InputError
from istseg.locate import Locator

FORMAT = 1
TRANSCRIPTS = "transcripts.csv"
HULL_MARGIN_UM = 0.25
"""Half the size of a molecule's spot, about: so that one or two transcripts have an area, too."""


@dataclass(frozen=True)
class Prepared:
    """What a program was given: the record, and the objects that it started from (prior number − 1 is their place)."""

    folder: Path
    record: dict[str, Any]
    prior: gpd.GeoDataFrame


@dataclass
class Collected:
    """What a program gave.

    Attributes
    ----------
    outlines
        Number of a cell → its outline in µm.
    transcripts, cells
        (n,) int64: id of an assigned transcript, and the number of its cell.
    facts
        How it was made: versions, parameters.
    warnings
        Sentences for the user.
    """

    outlines: Mapping[int, Any]
    transcripts: np.ndarray
    cells: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def write(folder: Path, sample: Sample, method: str, prior: gpd.GeoDataFrame, transcripts: Path, locator: Locator, kind: str) -> dict[str, Any]:
    """Write the folder; streams the transcripts.

    Parameters
    ----------
    prior
        What the program starts from.
    locator
        Point (µm) → place in `prior`.
    kind
        `nuclei` or `cells`.

    Returns
    -------
    The record.
    """
    record = {"format": FORMAT, "sample": sample.sample, "method": method, "prior": kind, "n_prior": len(prior), "n_transcripts": 0, "n_in_prior": 0}
    schema = pa.schema(
        [("transcript_id", pa.int64()), ("x", pa.float64()), ("y", pa.float64()), ("z", pa.float64()), ("gene", pa.string()), ("prior", pa.int64())]
    )
    with whole(folder / TRANSCRIPTS) as part, csv.CSVWriter(part, schema) as writer:
        for batch in transcript_batches(transcripts, ["transcript_id", "x", "y", "gene", "is_control"]):
            batch = batch.filter(pc.invert(batch["is_control"]))
            xy = np.column_stack([batch["x"], batch["y"]]).astype(float)
            number = locator(xy) + 1
            columns = [
                batch["transcript_id"].cast(pa.int64()),
                *(pa.array(c) for c in (*xy.T, np.zeros(len(xy)))),
                batch["gene"].cast(pa.string()),
                pa.array(number),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            record["n_transcripts"] += len(xy)
            record["n_in_prior"] += int((number > 0).sum())
    centroids = pd.DataFrame({"prior": np.arange(1, len(prior) + 1), "x": prior["centroid_x_um"].to_numpy(), "y": prior["centroid_y_um"].to_numpy()})
    with whole(folder / "prior.csv") as part:
        centroids.to_csv(part, index=False)
    cells_file.write(folder / "prior.cells.parquet", prior)
    write_json(folder / "prepared.json", record)
    return record


def read(folder: Path, sample: str, method: str) -> Prepared:
    """Read the folder.

    Raises
    ------
    InputError
        If it is of another sample or method, or something is missing.
    """
    folder = Path(folder)
    record = read_record(folder / "prepared.json", "comparator prepare", FORMAT)
    if (found := (record.get("sample"), record.get("method"))) != (sample, method):
        raise InputError(f"{folder}: was prepared for sample and method {found}, wanted are {(sample, method)}; run comparator prepare again.")
    return Prepared(folder, record, cells_file.read(folder / "prior.cells.parquet"))


def places(prepared: Prepared) -> pd.DataFrame:
    """`transcript_id`, `x`, `y` of all transcripts that the program was given."""
    options = csv.ConvertOptions(include_columns=["transcript_id", "x", "y"])
    return csv.read_csv(prepared.folder / TRANSCRIPTS, convert_options=options).to_pandas()


def hulls(xy: np.ndarray, numbers: np.ndarray, seeds: Mapping[int, Any] | None = None) -> dict[int, Any]:
    """Number → convex hull of the points of that number, and of its seed, widened by `HULL_MARGIN_UM`.

    Parameters
    ----------
    xy
        (n, 2) µm.
    numbers
        (n,) of the cell of each point.
    seeds
        Number → outline that the cell holds, too.
    """
    order = np.argsort(numbers, kind="stable")
    found, first = np.unique(numbers[order], return_index=True)
    groups = np.split(xy[order], first[1:]) if len(found) else []
    shapes = [_hull(points, (seeds or {}).get(number)) for number, points in zip(found.tolist(), groups, strict=True)]
    return dict(zip(found.tolist(), shapes, strict=True))


def _hull(points: np.ndarray, seed: Any) -> Any:
    everything = points if seed is None else np.concatenate([points, shapely.get_coordinates(seed)])
    return shapely.buffer(shapely.convex_hull(shapely.multipoints(everything)), HULL_MARGIN_UM)
