"""A converted sample made by hand: a sheet of round cells with known places, as `convert` would write it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from istseg.artifacts.sample import Sample, Stain

GENES = ["Actb", "Gfap", "Mbp"]
CONTROLS = ["Blank-1"]
SHIFT_UM = (500.0, -300.0)
"""x, y of the mosaic's corner in the micron frame."""


@dataclass
class Sheet:
    """Paths and truth of a made sample."""

    folder: Path
    store: Path
    sample_json: Path
    sample: Sample
    centres_um: np.ndarray
    image: np.ndarray
    transcripts: pd.DataFrame


def make_sheet(
    folder: Path,
    height_um: float = 90.0,
    width_um: float = 90.0,
    pixel_um: float = 0.253,
    membranes: tuple[str, ...] = ("Ring", "Cyto"),
    per_cell: int = 60,
    tissue: tuple[float, float] = (0.0, 1.0),
    levels: int = 3,
    bands: int = 3,
    seed: int = 0,
    shuffle: bool = True,
) -> Sheet:
    """Write `s.zarr` and `sample.json`.

    Cells of 5.5 µm radius with nuclei of 3 µm lie on a jittered lattice of 15 µm in the share `tissue` (from, to) of the width; `Ring` is bright on the
    contour, every other membrane stain fills the cell. An unused stain `Other` follows the others.
    """
    random = np.random.default_rng(seed)
    shape = round(height_um / pixel_um), round(width_um / pixel_um)
    ys, xs = np.meshgrid(np.arange(8, height_um, 15), np.arange(8, width_um, 15), indexing="ij")
    centres = np.column_stack([ys.ravel(), xs.ravel()]) + random.uniform(-1.5, 1.5, (ys.size, 2))
    inside = (centres[:, 1] >= tissue[0] * width_um) & (centres[:, 1] <= tissue[1] * width_um)
    centres = centres[inside]
    names = ["DAPI", *membranes, "Other"]
    image = _paint(shape, pixel_um, centres, membranes, random)
    points = _transcripts(centres, per_cell, (height_um, width_um), random, shuffle)
    stains = []
    for name, plane in zip(names, image, strict=True):
        role = "nucleus" if name == "DAPI" else "membrane" if name in membranes else "other"
        low, high = np.percentile(plane, [1, 99])
        stains.append(Stain(name, role, float(low), float(max(high, low + 1))))
    affine = [[1 / pixel_um, 0, -SHIFT_UM[0] / pixel_um], [0, 1 / pixel_um, -SHIFT_UM[1] / pixel_um], [0, 0, 1]]
    ends = [height_um * (i + 1) / bands for i in range(bands)]
    sample = Sample("s", "merscope", affine, pixel_um, *shape, stains, GENES, CONTROLS, {"total": len(points)}, ends)
    store = folder / "s.zarr"
    write_image(store, image, levels)
    write_points(store, points, ends)
    sample.write(folder / "sample.json")
    return Sheet(folder, store, folder / "sample.json", sample, centres, image, points)


def write_image(store: Path, image: np.ndarray, levels: int) -> None:
    """The NGFF image `images/stains`, its levels named unlike the usual numbers."""
    group = zarr.open_group(str(store), mode="w").create_group("images/stains")
    datasets = []
    for level in range(levels):
        array = group.create_array(f"s{level}", shape=image.shape, chunks=(1, 256, 256), dtype="uint16")
        array[:] = image
        datasets.append({"path": f"s{level}", "coordinateTransformations": [{"type": "scale", "scale": [1, 2**level, 2**level]}]})
        height, width = image.shape[1] // 2 * 2, image.shape[2] // 2 * 2
        if min(height, width) < 2:
            break
        image = image[:, :height, :width].reshape(len(image), height // 2, 2, width // 2, 2).mean((2, 4)).astype(np.uint16)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"datasets": datasets}]}


def write_points(store: Path, points: pd.DataFrame, ends: list[float]) -> None:
    """Part i holds band i; y of the bands is counted from the mosaic's top edge."""
    folder = store / "points" / "transcripts" / "points.parquet"
    folder.mkdir(parents=True)
    band = np.clip(np.searchsorted(ends, points["y"] - SHIFT_UM[1], side="right"), 0, len(ends) - 1)
    for i in range(len(ends)):
        points[band == i].to_parquet(folder / f"part.{i}.parquet", index=False)


def _paint(shape, pixel_um, centres, membranes, random) -> np.ndarray:
    image = np.full((len(membranes) + 2, *shape), 200.0, np.float32)
    y, x = (np.arange(n) * pixel_um + pixel_um / 2 for n in shape)
    for cy, cx in centres:
        rows, columns = (slice(max(int((c - 9) / pixel_um), 0), int((c + 9) / pixel_um)) for c in (cy, cx))
        distance = np.hypot(y[rows, None] - cy, x[columns] - cx)
        image[0, rows, columns] += 2000 / (1 + np.exp((distance - 3) / 0.3))
        for k, name in enumerate(membranes, 1):
            filled = 1 / (1 + np.exp((distance - 5.5) / 0.3))
            signal = np.exp(-0.5 * ((distance - 5.5) / 0.5) ** 2) if name == "Ring" else filled
            image[k, rows, columns] += 1500 * signal
    image += random.normal(0, 15, image.shape)
    return np.clip(np.rint(image), 0, 65535).astype(np.uint16)


def _transcripts(centres, per_cell, size_um, random, shuffle) -> pd.DataFrame:
    n = len(centres) * per_cell
    radius, angle = 5.5 * np.sqrt(random.uniform(0, 1, n)), random.uniform(0, 2 * np.pi, n)
    middle = np.repeat(centres, per_cell, axis=0)
    y, x = middle[:, 0] + radius * np.sin(angle), middle[:, 1] + radius * np.cos(angle)
    inside = (y >= 0) & (y < size_um[0]) & (x >= 0) & (x < size_um[1])
    y, x = y[inside], x[inside]
    names = np.array(GENES + CONTROLS)[random.choice(4, len(y), p=[0.4, 0.3, 0.25, 0.05])]
    frame = pd.DataFrame(
        {
            "x": x + SHIFT_UM[0],
            "y": y + SHIFT_UM[1],
            "z": np.zeros(len(y), np.float32),
            "gene": pd.Categorical(names, GENES + CONTROLS),
            "transcript_id": np.arange(len(y), dtype=np.int64),
            "is_control": np.isin(names, CONTROLS),
            "vendor_cell": pd.Series([None] * len(y), dtype=object),
        }
    )
    return frame.sample(frac=1, random_state=1).reset_index(drop=True) if shuffle else frame


def cut(sheet: Sheet, out: Path, tile_um: float = 2000.0, **options: float) -> list[Path]:
    """Run `tile`; gives the tile folders."""
    from istseg.stages import tile

    given = {"working_um": 0.253, "overlap_um": 32.384, "min_transcripts": 3, **options}
    tile.run(sample_json=sheet.sample_json, zarr=sheet.store, out=out, tile_um=tile_um, **given)
    return sorted(p for p in (out / "tiles").iterdir() if p.is_dir())


def teach(tiles: list[Path], out: Path, **options: object) -> None:
    """Run `teach` with the watershed teacher and the defaults of the command."""
    from istseg.stages import teach as stage

    given = {
        "teacher": "watershed", "vendor_cells": None, "nuclei_weights": None, "nuclei_sha256": None, "cyto_weights": None, "cyto_sha256": None,
        "cell_diameter_um": 6.5, "nucleus_diameter_um": 6.5, "min_nucleus_area_um2": 8.0, "min_cell_area_um2": 12.8, "density_sigma_um": 1.08,
        "contain": 0.95, "intersect": 0.05, "device": "cpu", **options,
    }  # fmt: skip
    stage.run(tiles=tiles, out=out, **given)


def curate(tiles: list[Path], labels: Path, thresholds: Path, out: Path, **options: object) -> dict:
    """Run `curate` with the defaults of the command; gives curation.json."""
    from istseg.stages import curate as stage

    given = {"contain": 0.95, "intersect": 0.05, "max_background": 0.05, "density_sigma_um": 1.08, "patches": True, "min_objects": 3, **options}
    stage.run(tiles=tiles, labels=labels, thresholds=thresholds, out=out, **given)
    return json.loads((out / "curation.json").read_text())


def genes_of(folder: Path) -> dict[str, int]:
    """Transcripts of each gene in a tile's region, controls left out; genes that the sample has elsewhere are there with 0."""
    table = pd.read_parquet(folder / "transcripts.parquet")
    return table.loc[~table["is_control"], "gene"].value_counts().to_dict()
