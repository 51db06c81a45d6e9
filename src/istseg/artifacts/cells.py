"""`*.cells.parquet`, `nuclei.parquet`: polygons of a whole sample (GeoParquet), the common form of every segmentation.

Ours, the teacher's, the vendor's and every comparator's cells enter `assign` and `assess` in this form, in the sample's `micron` frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely

from istseg.artifacts.files import scratch, whole
from istseg.errors import InputError

CELL_COLUMNS = ["cell_id", "label", "area_um2", "centroid_x_um", "centroid_y_um", "mean_flow", "geometry"]
"""`cell_id`: stable string, unique in the sample. `label`: its number in the label image of `labels.zarr`; 0 where the segmentation has no label image."""

_ROWS = 4096
_CENTROID = ("centroid_x_um", "centroid_y_um")


def frame(ids: list[str], polygons: np.ndarray, labels: np.ndarray | None = None, mean_flow: np.ndarray | None = None) -> gpd.GeoDataFrame:
    """Cells with `CELL_COLUMNS` from polygons in µm."""
    polygons = np.asarray(polygons, dtype=object)
    centroids = shapely.centroid(polygons) if len(polygons) else np.empty(0, object)
    n = len(polygons)
    return gpd.GeoDataFrame(
        {
            "cell_id": pd.Series(ids, dtype=str),
            "label": np.zeros(n, np.int32) if labels is None else np.asarray(labels, np.int32),
            "area_um2": shapely.area(polygons) if n else np.empty(0),
            "centroid_x_um": shapely.get_x(centroids) if n else np.empty(0),
            "centroid_y_um": shapely.get_y(centroids) if n else np.empty(0),
            "mean_flow": np.full(n, np.nan) if mean_flow is None else np.asarray(mean_flow, float),
        },
        geometry=list(polygons),
    )[CELL_COLUMNS]


def write(path: str | Path, cells: gpd.GeoDataFrame) -> None:
    """Write cells; ids must be unique (ValueError)."""
    if cells["cell_id"].duplicated().any():
        raise ValueError("cell ids are not unique")
    with whole(path) as part:
        cells[CELL_COLUMNS].to_parquet(part, index=False)


def write_parts(path: str | Path, parts: Iterable[gpd.GeoDataFrame]) -> None:
    """Write cells that come in parts, of which one is held at a time; one part gives the file that `write` gives. Ids must be unique over all parts."""
    import pyarrow.parquet as pq

    with whole(path) as target, scratch(Path(path).with_suffix(".parts")) as folder:
        files = []
        for number, part in enumerate(parts):
            files.append(folder / f"{number}.parquet")
            write(files[-1], part)
        if len(files) == 1:
            files[0].rename(target)
            return
        schema = _schema_of_all([pq.read_schema(file) for file in files])
        with pq.ParquetWriter(target, schema) as writer:
            for file in files:
                writer.write_table(pq.read_table(file).replace_schema_metadata(schema.metadata))


def _schema_of_all(schemas: list[pa.Schema]) -> pa.Schema:
    """The schema of parts, whose box in the GeoParquet metadata holds the boxes of all."""
    geo = [json.loads(schema.metadata[b"geo"]) for schema in schemas]
    columns = [one["columns"]["geometry"] for one in geo]
    boxes = np.array([column["bbox"] for column in columns])
    whole_box = {"bbox": [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]}
    types = {"geometry_types": sorted({kind for column in columns for kind in column["geometry_types"]})}
    merged = geo[0] | {"columns": {"geometry": columns[0] | whole_box | types}}
    return schemas[0].with_metadata(schemas[0].metadata | {b"geo": json.dumps(merged).encode()})


def read(path: str | Path, geometry: bool = True, within: Sequence[tuple[float, float, float, float]] | None = None) -> gpd.GeoDataFrame:
    """Read cells; without their polygons (a DataFrame, a fraction of the memory) when `geometry` is False; only those whose centroid lies `within` one of
    some boxes (x0, y0, x1, y1 in µm) when they are given.

    Raises
    ------
    InputError
        If the file is missing, lacks a column, ids repeat, or a centroid is no finite number.

    """
    wanted = [c for c in CELL_COLUMNS if c != "geometry"]
    boxes = None if within is None else [list(zip(_CENTROID * 2, (">=", ">=", "<=", "<="), box, strict=True)) for box in within]
    try:
        cells = _with_polygons(Path(path), boxes) if geometry else pd.read_parquet(path, columns=wanted, filters=boxes)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it should hold the cells of a segmentation (GeoParquet).") from None
    except (ValueError, OSError, LookupError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as GeoParquet ({error}).") from None
    missing = set(CELL_COLUMNS if geometry else wanted) - set(cells.columns)
    if missing:
        raise InputError(f"{path}: lacks the columns {sorted(missing)}.")
    if cells["cell_id"].duplicated().any():
        raise InputError(f"{path}: cell_id is not unique, e.g. {cells.loc[cells['cell_id'].duplicated(), 'cell_id'].iloc[0]!r}.")
    centroids = cells[["centroid_x_um", "centroid_y_um"]].apply(pd.to_numeric, errors="coerce")
    lost = ~np.isfinite(centroids.to_numpy(float)).all(axis=1)
    if lost.any():
        first = cells.loc[lost, "cell_id"].iloc[0]
        raise InputError(f"{path}: {int(lost.sum())} of {len(cells)} cells have no finite centroid, e.g. {first!r}; remove cells without an outline.")
    return cells


def _with_polygons(path: Path, filters: list[list[tuple[str, str, float]]] | None) -> gpd.GeoDataFrame:
    """The rows, a block at a time: the bytes of all polygons beside the polygons would be three times their memory.

    Raises
    ------
    ValueError, OSError, LookupError
        If it is no GeoParquet.
    """
    import pyarrow.dataset
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(path)
    column = json.loads(pq.read_schema(path).metadata[b"geo"])["columns"]["geometry"]
    if column["encoding"] != "WKB":
        raise ValueError(f"polygons are encoded as {column['encoding']}, not WKB")
    wanted = None if filters is None else pq.filters_to_expression(filters)
    scanner = pyarrow.dataset.dataset(path).scanner(filter=wanted, batch_size=_ROWS, batch_readahead=1, use_threads=False)
    rows, polygons = [], [np.empty(0, object)]
    for batch in scanner.to_batches():
        polygons.append(shapely.from_wkb(batch["geometry"].to_numpy(zero_copy_only=False)))
        rows.append(batch.drop_columns("geometry"))
    schema = scanner.projected_schema.remove(scanner.projected_schema.get_field_index("geometry"))
    return gpd.GeoDataFrame(pa.Table.from_batches(rows, schema).to_pandas(), geometry=np.concatenate(polygons))
