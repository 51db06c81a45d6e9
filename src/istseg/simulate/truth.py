"""The truth beside a simulated raw folder: cells, nuclei and the cell of every transcript."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from istseg.artifacts.annotations import write_geojson
from istseg.artifacts.sample import apply_affine
from istseg.simulate.outlines import Truth
from istseg.simulate.panel import TYPES
from istseg.simulate.seeds import name_of

_SHAPE = [
    ("cell_id", pa.string()),
    ("label", pa.int32()),
    ("area_um2", pa.float64()),
    ("centroid_x_um", pa.float64()),
    ("centroid_y_um", pa.float64()),
    ("mean_flow", pa.float64()),
    ("geometry", pa.binary()),
]


def geo_schema(columns: list[tuple[str, pa.DataType]], geometry: str = "geometry") -> pa.Schema:
    """Schema with the metadata that makes a parquet file a GeoParquet file without coordinate system."""
    geo = {"version": "1.0.0", "primary_column": geometry, "columns": {geometry: {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}}}
    return pa.schema(columns, metadata={"geo": json.dumps(geo)})


CELLS = geo_schema([*_SHAPE, ("has_nucleus", pa.bool_()), ("n_nuclei", pa.int8()), ("degraded", pa.bool_()), ("cell_type", pa.string())])
"""`artifacts.cells.CELL_COLUMNS` and what is known of a simulated cell."""
NUCLEI = geo_schema([*_SHAPE, ("parent_id", pa.string())])
COMPRESSION = "zstd"
_MARGIN_UM = 10.0
TRANSCRIPTS = pa.schema([("transcript_id", pa.int64()), ("cell_id", pa.string())])
"""`transcript_id`: row of the raw table, from 0. `cell_id`: the cell it comes from, null for background, controls and cells that lie outside of the mosaic."""


def cells_table(truth: Truth, shift: tuple[float, float]) -> pa.Table:
    """Cells of a block in the micron frame; `shift` (x, y) leads there from the scene."""
    names = [name_of(n) for n in truth.number.tolist()]
    columns = _shape_columns(names, _moved(truth.polygon, shift))
    columns |= {
        "has_nucleus": truth.n_nuclei > 0,
        "n_nuclei": truth.n_nuclei.astype(np.int8),
        "degraded": truth.degraded,
        "cell_type": [TYPES[k].name for k in truth.kind],
    }
    return pa.table(columns, schema=CELLS)


def nuclei_table(truth: Truth, shift: tuple[float, float]) -> pa.Table:
    """Nuclei of a block; their ids are the cell's with `n1` or `n2`."""
    parents = [name_of(n) for n in truth.nucleus_of.tolist()]
    second = np.append(False, truth.nucleus_of[1:] == truth.nucleus_of[:-1])[: len(parents)]
    names = [f"{parent}n{1 + again}" for parent, again in zip(parents, second, strict=True)]
    return pa.table(_shape_columns(names, _moved(truth.nucleus, shift)) | {"parent_id": parents}, schema=NUCLEI)


def true_cells(numbers: np.ndarray, kept: np.ndarray) -> pa.Array:
    """Names of the cells that transcripts come from, null where there is none."""
    unique, inverse = np.unique(np.where(kept, numbers, 0), return_inverse=True)
    names = pa.array([name_of(n) if n else None for n in unique.tolist()], pa.string())
    return names.take(pa.array(inverse))


def join(parts: Iterable[Path], path: Path, schema: pa.Schema, number: str | None = None) -> int:
    """Write parquet parts as one file, one after the other; column `number` is filled with the running row number. Returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with pq.ParquetWriter(path, schema, compression=COMPRESSION) as writer:
        for part in parts:
            for batch in pq.ParquetFile(part).iter_batches(500_000):
                table = pa.Table.from_batches([batch])
                if number:
                    table = table.set_column(schema.get_field_index(number), number, pa.array(np.arange(rows, rows + len(table)), schema.field(number).type))
                writer.write_table(table.cast(schema))
                rows += len(table)
    return rows


def annotate(cells: Path, path: Path, micron_to_pixel: np.ndarray, shape_px: tuple[int, int]) -> None:
    """Write the true cells as a person would annotate them: GeoJSON in mosaic pixels.

    Cells are cut at the mosaic's edge, those of which less than half can be seen are left out. In the region, the mosaic without a margin of `_MARGIN_UM` (less
    in a small one), where cells are whole, every cell is there.
    """
    image = shapely.box(0, 0, shape_px[1], shape_px[0])
    margin = min(_MARGIN_UM * float(np.sqrt(abs(np.linalg.det(micron_to_pixel[:2, :2])))), min(shape_px) / 8)

    def visible() -> Iterator[tuple[str, shapely.Polygon]]:
        for batch in pq.ParquetFile(cells).iter_batches(5_000, columns=["cell_id", "geometry"]):
            whole = shapely.transform(shapely.from_wkb(batch["geometry"].to_numpy(zero_copy_only=False)), lambda xy: apply_affine(micron_to_pixel, xy))
            seen = shapely.intersection(whole, image)
            for name, polygon, kept in zip(batch["cell_id"].to_pylist(), seen, shapely.area(seen) >= 0.5 * shapely.area(whole), strict=True):
                if kept:
                    yield name, polygon

    write_geojson(path, visible(), image.buffer(-margin, join_style="mitre"))


def _moved(polygons: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    return shapely.transform(polygons, lambda xy: xy + np.asarray(shift)) if len(polygons) else polygons


def _shape_columns(names: list[str], polygons: np.ndarray) -> dict[str, object]:
    n = len(names)
    centres = shapely.centroid(polygons) if n else np.empty(0, object)
    return {
        "cell_id": names,
        "label": np.zeros(n, np.int32),
        "area_um2": shapely.area(polygons) if n else np.empty(0),
        "centroid_x_um": shapely.get_x(centres) if n else np.empty(0),
        "centroid_y_um": shapely.get_y(centres) if n else np.empty(0),
        "mean_flow": np.full(n, np.nan),
        "geometry": list(shapely.to_wkb(polygons)) if n else [],
    }
