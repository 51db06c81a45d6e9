"""The instrument's own cells of a MERSCOPE region: boundaries of both generations, `cell_metadata.csv`, `cell_by_gene.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from istseg.simulate.molecules import N_CONTROLS
from istseg.simulate.panel import GENES
from istseg.simulate.randomness import generator
from istseg.simulate.truth import geo_schema

_FIRST_ENTITY = 614_155_123_100_000_000
_PLANE_UM = 1.5
BOUNDARIES = geo_schema(
    [
        ("ID", pa.int64()), ("EntityID", pa.int64()), ("ZIndex", pa.int64()), ("Geometry", pa.binary()), ("Type", pa.string()), ("ZLevel", pa.float64()),
        ("Name", pa.string()), ("ParentID", pa.int64()), ("ParentType", pa.string()),
    ],
    "Geometry",
)  # fmt: skip


def entity_id(numbers: np.ndarray) -> np.ndarray:
    """EntityID of the newer generation: int64, too long for a float."""
    return _FIRST_ENTITY + np.asarray(numbers, np.int64)


def schema(n_genes: int) -> pa.Schema:
    """Of the parts that the writer leaves."""
    return pa.schema([("id", pa.string()), ("fov", pa.int64()), ("geometry", pa.binary()), ("counts", pa.list_(pa.int32(), n_genes))])


def table(ids: list[str], fov: np.ndarray, polygons: np.ndarray, counts: np.ndarray) -> pa.Table:
    """A part: cells with micron polygons and (n, genes) counts."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(counts.ravel(), pa.int32()), counts.shape[1])
    geometry = list(shapely.to_wkb(polygons)) if len(polygons) else []
    return pa.table({"id": ids, "fov": np.asarray(fov, np.int64), "geometry": geometry, "counts": lists}, schema=schema(counts.shape[1]))


def write(folder: Path, parts: list[Path], generation: str, planes: int) -> int:
    """Write all tables and boundaries; returns the number of cells."""
    newer = generation == "parquet"
    genes = [*GENES, *(f"Blank-{i + 1}" for i in range(N_CONTROLS))]
    boundaries = _Parquet(folder, planes) if newer else _Hdf5(folder, planes)
    n = 0
    with open(folder / "cell_metadata.csv", "w", newline="") as metadata, open(folder / "cell_by_gene.csv", "w", newline="") as matrix:
        about, counts = csv.writer(metadata), csv.writer(matrix)
        about.writerow(_METADATA[generation])
        counts.writerow(["cell" if newer else "", *genes])
        for part in parts:
            for batch in pq.ParquetFile(part).iter_batches(4096):
                ids, fovs, polygons = batch["id"].to_pylist(), batch["fov"].to_pylist(), shapely.from_wkb(batch["geometry"].to_numpy(zero_copy_only=False))
                values = batch["counts"].flatten().to_numpy().reshape(len(ids), len(genes))
                about.writerows(_metadata_rows(ids, fovs, polygons, values, generation, planes))
                counts.writerows([name, *row] for name, row in zip(ids, values.tolist(), strict=True))
                boundaries.add(ids, fovs, polygons)
                n += len(ids)
    boundaries.close()
    return n


_METADATA = {
    "hdf5": ["", "fov", "volume", "center_x", "center_y", "min_x", "max_x", "min_y", "max_y"],
    "parquet": [
        "EntityID",
        "fov",
        "volume",
        "center_x",
        "center_y",
        "min_x",
        "min_y",
        "max_x",
        "max_y",
        "anisotropy",
        "transcript_count",
        "perimeter_area_ratio",
        "solidity",
    ],
}


def _metadata_rows(ids: list[str], fovs: list[int], polygons: np.ndarray, counts: np.ndarray, generation: str, planes: int) -> Iterator[list[object]]:
    bounds, area, centres = shapely.bounds(polygons), shapely.area(polygons), shapely.centroid(polygons)
    length, hull = shapely.length(polygons), shapely.area(shapely.convex_hull(polygons))
    for i, name in enumerate(ids):
        x0, y0, x1, y1 = bounds[i].tolist()
        common = [name, fovs[i], area[i] * planes * _PLANE_UM, centres[i].x, centres[i].y]
        if generation == "hdf5":
            yield [*common, x0, x1, y0, y1]
            continue
        sides = sorted((x1 - x0, y1 - y0))
        yield [*common, x0, y0, x1, y1, sides[1] / sides[0], int(counts[i].sum()), length[i] / area[i], area[i] / hull[i]]


class _Parquet:
    """`cell_boundaries.parquet`: one polygon repeated on all planes."""

    def __init__(self, folder: Path, planes: int):
        self._writer = pq.ParquetWriter(folder / "cell_boundaries.parquet", BOUNDARIES)
        self._planes, self._next = planes, 0

    def add(self, ids: list[str], fovs: list[int], polygons: np.ndarray) -> None:
        n, planes = len(ids), self._planes
        entity = np.repeat(np.array(ids, dtype=np.int64), planes)
        z = np.tile(np.arange(planes), n)
        rows = n * planes
        columns = [
            np.arange(self._next, self._next + rows), entity, z, list(np.repeat(shapely.to_wkb(polygons), planes)), ["cell"] * rows, (z + 1) * _PLANE_UM,
            pa.nulls(rows, pa.string()), pa.nulls(rows, pa.int64()), pa.nulls(rows, pa.string()),
        ]  # fmt: skip
        self._writer.write_table(pa.table(dict(zip(BOUNDARIES.names, columns, strict=True)), schema=BOUNDARIES))
        self._next += rows

    def close(self) -> None:
        self._writer.close()


class _Hdf5:
    """`cell_boundaries/feature_data_<fov>.hdf5`: outlines per plane that differ a little; some planes are missing."""

    def __init__(self, folder: Path, planes: int):
        self._folder = folder / "cell_boundaries"
        self._folder.mkdir()
        self._planes = planes

    def add(self, ids: list[str], fovs: list[int], polygons: np.ndarray) -> None:
        import h5py

        for fov in sorted(set(fovs)):
            with h5py.File(self._folder / f"feature_data_{fov}.hdf5", "a") as file:
                features = file.require_group("featuredata")
                for i in [i for i, f in enumerate(fovs) if f == fov]:
                    self._add_cell(features.create_group(ids[i]), int(ids[i]) % (1 << 31), polygons[i])

    def _add_cell(self, group, key: int, polygon: shapely.Polygon) -> None:
        random = generator(0, "vendor", key % (1 << 20), key >> 20)
        group["z_coordinates"] = (np.arange(self._planes) + 1) * _PLANE_UM
        shrink = random.uniform(0, 0.25, self._planes)
        missing = random.random(self._planes) < 0.1
        missing[(self._planes - 1) // 2] = False
        for z in range(self._planes):
            plane = group.create_group(f"zIndex_{z}")
            shape = polygon.buffer(-shrink[z])
            if missing[z] or shape.geom_type != "Polygon" or shape.is_empty:
                continue
            plane.create_dataset("p_0/coordinates", data=np.asarray(shape.exterior.coords)[None])

    def close(self) -> None:
        """Files are closed after each addition."""
