"""A small converted, tiled, merged sample on disk with a known truth, for the tests of assign, assess and export.

Mosaic 1000 × 1200 full pixels of 0.1 µm (100 × 120 µm), working pixels of 0.25 µm, origin of the micron frame at (1000, 2000) µm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import zarr

from istseg.artifacts import cells as cells_file
from istseg.artifacts.sample import Sample, Stain, apply_affine
from istseg.artifacts.thresholds import Thresholds
from istseg.artifacts.tiles import Tile, TileIndex
from istseg.grid import WindowGrid, tile_id

PIXEL_UM, WORKING_UM = 0.1, 0.25
ORIGIN_UM = np.array([1000.0, 2000.0])
HEIGHT_UM, WIDTH_UM = 100.0, 120.0
GENES = ["Actb", "HLA-A/B", "Größe", "β-Actin"]
CONTROLS = ["Blank-1", "Blank-2"]


@dataclass
class World:
    """Paths of a sample's files and what was put in them."""

    root: Path
    sample: Sample
    points: pd.DataFrame
    cells: object = None
    nuclei: object = None
    paths: dict[str, Path] = field(default_factory=dict)


def circle(x: float, y: float, radius: float) -> shapely.Polygon:
    """Circle around a point given in µm from the mosaic's corner."""
    return shapely.Point(*(ORIGIN_UM + [x, y])).buffer(radius, 16)


def affine(um_per_px: float) -> np.ndarray:
    scale = 1 / um_per_px
    return np.array([[scale, 0, -ORIGIN_UM[0] * scale], [0, scale, -ORIGIN_UM[1] * scale], [0, 0, 1]])


def make(
    root: Path,
    centres: np.ndarray,
    radius: float = 5.0,
    n_transcripts: int = 4000,
    nuclei: list | None = None,
    seed: int = 0,
    membranes: tuple[str, ...] = ("Cellbound1",),
    outside: int = 7,
    bands: int = 3,
    without_rna: list | None = None,
    windows_per_side: int = 1,
    genes: list[str] = GENES,
) -> World:
    """Write a sample with round cells at `centres` (µm from the corner)."""
    rng = np.random.default_rng(seed)
    n = n_transcripts
    local = np.column_stack([rng.uniform(0, WIDTH_UM, n), rng.uniform(0, HEIGHT_UM, n)])
    for hole in without_rna or []:
        local[shapely.contains_xy(hole, *(local + ORIGIN_UM).T)] = [0.5, 0.5]
    local[:outside] = [WIDTH_UM + 3, 5]
    names = [*genes, *CONTROLS]
    gene = rng.choice(len(names), n, p=[*[0.95 / len(genes)] * len(genes), 0.03, 0.02])
    points = pd.DataFrame(
        {
            "x": local[:, 0] + ORIGIN_UM[0],
            "y": local[:, 1] + ORIGIN_UM[1],
            "z": rng.integers(0, 3, n).astype(np.int16),
            "gene": pd.Categorical.from_codes(gene, names),
            "is_control": gene >= len(genes),
            "transcript_id": np.arange(n, dtype=np.int64) + 10,
        }
    )
    points["vendor_cell"] = ""
    ends = [HEIGHT_UM * (i + 1) / bands for i in range(bands)]
    folder = root / "points.parquet"
    folder.mkdir(parents=True)
    band = np.searchsorted(ends, local[:, 1], side="right").clip(max=bands - 1)
    for i in range(bands):
        pq.write_table(pa.Table.from_pandas(points[band == i], preserve_index=False), folder / f"part.{i}.parquet")
    stains = [Stain("DAPI", "nucleus", 0, 1000), *(Stain(m, "membrane", 100, 900) for m in membranes), Stain("PolyT", "other", 0, 10)]
    counts = {
        "total": n,
        "genes": int((gene < len(genes)).sum()),
        "controls": int((gene >= len(genes)).sum()),
        "outside_image": outside,
        "by_plane": {"0": 1, "1": 1, "2": 1},
    }
    sample = Sample(
        "s1", "merscope", affine(PIXEL_UM).tolist(), PIXEL_UM, round(HEIGHT_UM / PIXEL_UM), round(WIDTH_UM / PIXEL_UM), stains, genes, CONTROLS, counts, ends
    )
    sample.write(root / "sample.json")
    world = World(root, sample, points, paths={"sample": root / "sample.json", "points": folder})
    _segmentation(world, [circle(x, y, radius) for x, y in centres], nuclei if nuclei is not None else [circle(x, y, radius * 0.5) for x, y in centres])
    _tiles(world, membranes, windows_per_side)
    Thresholds("s1", 0.2, 8.0, 5, 500, None, {}, {"background": 5.0, "spurious": 5.0}).write(root / "thresholds.json")
    world.paths["thresholds"] = root / "thresholds.json"
    return world


def rasterise(polygons: list[shapely.Polygon], shape: tuple[int, int]) -> np.ndarray:
    labels = np.zeros(shape, np.int32)
    yy, xx = np.mgrid[: shape[0], : shape[1]] + 0.5
    for i, polygon in enumerate(polygons, 1):
        ring = shapely.Polygon(apply_affine(affine(WORKING_UM), shapely.get_coordinates(polygon)))
        labels[shapely.contains_xy(ring, xx, yy)] = i
    return labels


def _segmentation(world: World, cells: list, nuclei: list) -> None:
    root = world.root / "merged"
    shape = (round(HEIGHT_UM / WORKING_UM), round(WIDTH_UM / WORKING_UM))
    labels = np.arange(1, len(cells) + 1)
    world.cells = cells_file.frame([f"s1_{i:03d}" for i in labels], np.array(cells, dtype=object), labels * 3)
    world.nuclei = cells_file.frame([f"n{i}" for i in range(len(nuclei))], np.array(nuclei, dtype=object))
    cells_file.write(root / "istseg.cells.parquet", world.cells)
    cells_file.write(root / "nuclei.parquet", world.nuclei)
    group = zarr.open_group(root / "labels.zarr", mode="w")
    array = group.create_array("istseg", shape=shape, dtype="int32", chunks=(128, 128))
    array[:] = rasterise(cells, shape) * 3
    array.attrs.update({"micron_to_working": affine(WORKING_UM).tolist(), "working_um": WORKING_UM})
    world.paths |= {"merged": root, "cells": root / "istseg.cells.parquet", "nuclei": root / "nuclei.parquet", "labels": root / "labels.zarr"}


def _tiles(world: World, membranes: tuple[str, ...], n: int) -> None:
    height, width = round(HEIGHT_UM / WORKING_UM), round(WIDTH_UM / WORKING_UM)
    grid = WindowGrid(height, width)
    nucleus_image = rasterise(list(world.nuclei.geometry), (height, width)) > 0
    cell_image = rasterise(list(world.cells.geometry), (height, width))
    layers = [np.where(nucleus_image, 800, 50), *(np.where(cell_image > 0, 500 + 100 * i, 100) for i in range(len(membranes)))]
    stains = np.stack(layers).astype(np.uint16)
    working = apply_affine(affine(WORKING_UM), world.points[["x", "y"]].to_numpy())
    folder = world.root / "tiles"
    records = []
    genes = world.points.loc[~world.points["is_control"], "gene"].value_counts().to_dict()
    for ty, tx in grid.tiles(n):
        core, region = grid.tile_core(ty, tx, n), grid.tile_region(ty, tx, n)
        y0, x0, y1, x1 = region
        inside = (working[:, 1] >= y0) & (working[:, 1] < y1) & (working[:, 0] >= x0) & (working[:, 0] < x1)
        table = world.points[inside].assign(x_wpx=working[inside, 0], y_wpx=working[inside, 1])
        tile = Tile(
            "s1",
            tile_id(ty, tx),
            grid.as_dict(),
            core,
            region,
            grid.tile_windows(ty, tx, n),
            [],
            ["DAPI", *membranes],
            [(0, 1000), *[(100, 900)] * len(membranes)],
            WORKING_UM,
            affine(WORKING_UM).tolist(),
        )
        tile.write(folder / tile.tile_id, stains[:, y0:y1, x0:x1], table, genes)
        records.append({"tile_id": tile.tile_id, "core": core, "region": region, "n_windows": n * n, "n_transcripts": len(table)})
    TileIndex("s1", grid.as_dict(), n, WORKING_UM, affine(WORKING_UM).tolist(), records, [], 1.0).write(folder / "tiles.json")
    step = 4
    small = stains[:, ::step, ::step]
    np.savez_compressed(folder / "overview.npz", stains=small, stain_names=np.array(["DAPI", *membranes]), um_per_px=WORKING_UM * step, origin=np.zeros(2))
    world.paths["tiles"] = folder


def store(world: World) -> None:
    """Write `s1.zarr` as convert does: image and points."""
    from istseg.artifacts import spatial

    sample = world.sample
    root = world.root / "s1.zarr"
    writer = spatial.ImageWriter(root, [s.name for s in sample.stains], sample.height_px, sample.width_px, np.linalg.inv(sample.affine))
    image = np.random.default_rng(0).integers(0, 1000, (len(sample.stains), sample.height_px, sample.width_px), dtype=np.uint16)
    for y0 in range(0, sample.height_px, spatial.CHUNK):
        writer.write(image[:, y0 : y0 + spatial.CHUNK])
    writer.close()
    parts = spatial.write_points_metadata(root)
    schema = spatial.point_schema([*sample.genes, *sample.controls])
    for part in sorted(world.paths["points"].iterdir()):
        with spatial.open_part(parts / part.name, schema) as target:
            target.write_table(pq.read_table(part).select(schema.names).cast(schema))
    spatial.finish(root, ["images", "points"])
    world.paths["store"] = root
