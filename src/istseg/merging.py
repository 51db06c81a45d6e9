"""Objects of all tiles put together: each once, numbered by place, as polygons and as label images. What `merge` and the tile-wise comparators share.

Every object is taken from the tile that owns it. Objects are numbered by the place of their centroid (y, then x): numbers do not depend on the tiling. Where
two tiles' objects claim one pixel (possible only for objects larger than the halo) the smaller number has it; this is counted.

Of all objects only a row of numbers is held at once. Label images are painted tile by tile in rows of chunks, and outlines are read again from their
tiles, some thousand at a time, so memory grows by a row of numbers for each cell only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from istseg.artifacts import cells as cells_file
from istseg.artifacts.files import read_json, whole
from istseg.artifacts.labels import read_layers
from istseg.artifacts.sample import apply_affine
from istseg.artifacts.tiles import TileIndex
from istseg.errors import InputError
from istseg.progress import track

CHUNK_WPX = 1024
_FILES = ("labels.npz", "objects.parquet", "meta.json")
_COLUMNS = ["label", "centroid_x_wpx", "centroid_y_wpx", "area_wpx", "cut", "mean_flow"]
OUTLINES = 20_000
"""Held at once."""


@dataclass
class Source:
    """Where a segmentation of the result comes from.

    Attributes
    ----------
    name
        Of the array in `labels.zarr`.
    file
        Of the polygons.
    stage
        That made it.
    folder
        With the tiles' folders.
    layer
        In them.
    prefix
        Of the number in `cell_id`.
    """

    name: str
    file: str
    stage: str
    folder: Path
    layer: str
    prefix: str


def merge_sources(index: TileIndex, sources: list[Source], out: Path, store_name: str) -> dict[str, Any]:
    """Write the cells and label images of segmentations.

    Parameters
    ----------
    index
        Of the tiles, all of which must be in the sources' folders (`check_tiles`).
    sources
        What to merge.
    out
        Folder for the polygons and the label images.
    store_name
        Of the zarr group with one label image (y, x) int32 per source.

    Returns
    -------
    The record: `sample`, `n_tiles`, `n_skipped_tiles`, `segmentations` (name → `layer`, `n`, `n_cut`, `conflict_pixels`, `method`), `warnings`.

    Raises
    ------
    InputError
        If an object that its tile owns has no outline.
    """
    tables = {s.name: _number(_owned(index, s)) for s in sources}
    with whole(out / store_name) as store:
        conflicts = _paint(index, sources, tables, store)
    record: dict[str, Any] = {"sample": index.sample, "n_tiles": len(index.tiles), "n_skipped_tiles": len(index.skipped), "segmentations": {}, "warnings": []}
    for source in sources:
        table = tables[source.name]
        cells_file.write_parts(out / source.file, _frames(index, source, table))
        record["segmentations"][source.name] = {
            "layer": source.layer,
            "n": len(table),
            "n_cut": int(table["cut"].sum()),
            "conflict_pixels": conflicts[source.name],
            "method": _method(index, source),
        }
        if table["cut"].any():
            record["warnings"].append(f"{int(table['cut'].sum())} objects of {source.name} reach the border of their tile's region and may be incomplete.")
        if conflicts[source.name]:
            record["warnings"].append(f"{conflicts[source.name]} pixels were claimed by objects of two tiles in {source.name}; the one further up has them.")
    return record


def check_tiles(index: TileIndex, sources: list[Source]) -> list[str]:
    """Problems of the tiles' folders: missing, of another sample or tiling, without the layer."""
    problems = []
    for tile in index.tiles:
        for folder, stage in {s.folder: s.stage for s in sources}.items():
            problems += _problems_of(folder / tile["tile_id"], stage, index.sample, tile, [s.layer for s in sources if s.folder == folder])
    return problems


def check_alike(index: TileIndex, source: Source) -> list[str]:
    """Problems of tiles that were not made by one model, with the same parameters and in the same arithmetic."""
    models: dict[str, str] = {}
    arithmetic: dict[str, list[str]] = {}
    for tile in index.tiles:
        name = tile["tile_id"]
        meta = source.folder / name / "meta.json"
        if meta.is_file():
            method = read_json(meta, f"the meta.json of the stage {source.stage}").get("method", {})
            models.setdefault(f"{method.get('model_sha256')} {method.get('membranes')} {method.get('parameters')}", name)
            arithmetic.setdefault(" ".join(str(method.get(key)) for key in ("precision", "device", "network")), []).append(name)
    problems = []
    if len(models) > 1:
        where = ", ".join(models.values())
        problems.append(f"{source.folder}: tiles were segmented by different models or parameters, e.g. {where}; run {source.stage} again for all tiles.")
    if len(arithmetic) > 1:
        where = "; ".join(f"{how}: {len(names)} tiles, e.g. {names[0]}" for how, names in sorted(arithmetic.items()))
        problems.append(
            f"{source.folder}: tiles were segmented in different arithmetic ({where}), so cells at the border of two tiles may be there twice or not at "
            f"all; set --precision to bf16 or float32 instead of auto, keep to one device, and run {source.stage} again for all tiles."
        )
    return problems


def _problems_of(folder: Path, stage: str, sample: str, tile: dict[str, Any], layers: list[str]) -> list[str]:
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        return [f"{folder}: lacks {', '.join(missing)}, but tiles.json names this tile; run {stage} for it."]
    meta = read_json(folder / "meta.json", f"the meta.json of the stage {stage}")
    found = [meta.get(key) for key in ("sample", "tile_id", "core", "region")]
    wanted = [sample, tile["tile_id"], list(tile["core"]), list(tile["region"])]
    if found != wanted:
        return [f"{folder}: is of sample, tile, core and region {found}, tiles.json says {wanted}; run {stage} again."]
    names = meta.get("layer_names", [])
    return [
        f"{folder}: has no layer {layer}, only {', '.join(names)}; run {stage} and calibrate again for all tiles." for layer in layers if layer not in names
    ]


def _owned(index: TileIndex, source: Source) -> pd.DataFrame:
    """Owned objects of all tiles with `_COLUMNS` and `tile` (number of the tile)."""
    parts = []
    for number in range(len(index.tiles)):
        table = _read(index, source, number, [*_COLUMNS, "geometry"])
        if table["geometry"].isna().any():
            raise InputError(f"{_path(index, source, number)}: an object that its tile owns has no outline; run the stage that made it again.")
        parts.append(table[_COLUMNS].assign(tile=number))
    filled = [p for p in parts if len(p)]
    return pd.concat(filled, ignore_index=True) if filled else parts[0] if parts else pd.DataFrame({c: [] for c in [*_COLUMNS, "tile"]})


def _path(index: TileIndex, source: Source, number: int) -> Path:
    return source.folder / index.tiles[number]["tile_id"] / "objects.parquet"


def _read(index: TileIndex, source: Source, number: int, columns: list[str]) -> pd.DataFrame:
    """Owned objects of one tile."""
    return pd.read_parquet(_path(index, source, number), columns=columns, filters=[("layer", "==", source.layer), ("owned", "==", True)])


def _number(table: pd.DataFrame) -> pd.DataFrame:
    """Sort by the centroid and number from 1."""
    table = table.sort_values(["centroid_y_wpx", "centroid_x_wpx", "area_wpx", "tile", "label"], ignore_index=True)
    return table.assign(number=np.arange(1, len(table) + 1, dtype=np.int32))


def _paint(index: TileIndex, sources: list[Source], tables: dict[str, pd.DataFrame], store: Path) -> dict[str, int]:
    """Write the label images, tile by tile; return the number of pixels that two objects claim, by segmentation."""
    import zarr

    grid = index.window_grid
    group = zarr.open_group(store, mode="w")
    arrays = {}
    for source in sources:
        array = group.create_array(source.name, shape=(grid.height, grid.width), chunks=(CHUNK_WPX, CHUNK_WPX), dtype="int32", fill_value=0)
        array.attrs.update({"micron_to_working": index.micron_to_working, "working_um": index.working_um, "sample": index.sample})
        arrays[source.name] = array
    by_tile = {name: dict(list(table.groupby("tile")[["label", "number"]])) for name, table in tables.items()}
    conflicts = {source.name: 0 for source in sources}
    for number, tile in enumerate(track(index.tiles, "merge")):
        for source in sources:
            mine = by_tile[source.name].get(number)
            if mine is None:
                continue
            labels = read_layers(source.folder / tile["tile_id"], [source.layer])[source.layer]
            conflicts[source.name] += _paint_tile(arrays[source.name], labels, mine, tile["region"])
    return conflicts


def _paint_tile(array: Any, labels: np.ndarray, mine: pd.DataFrame, region: tuple[int, int, int, int]) -> int:
    """Write a tile's objects, in strips that end where chunks end: each chunk is read and written once."""
    numbers = np.zeros(max(int(labels.max()), int(mine["label"].max())) + 1, np.int32)
    numbers[mine["label"]] = mine["number"]
    conflicts = 0
    for start in range(region[0] - region[0] % CHUNK_WPX, region[2], CHUNK_WPX):
        top, bottom = max(start, region[0]), min(start + CHUNK_WPX, region[2])
        conflicts += _paint_strip(array, numbers[labels[top - region[0] : bottom - region[0]]], top, region[1])
    return conflicts


def _paint_strip(array: Any, painted: np.ndarray, y0: int, x0: int) -> int:
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
    if not len(rows):
        return 0
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    painted = painted[top:bottom, left:right]
    place = slice(y0 + top, y0 + bottom), slice(x0 + left, x0 + right)
    before = array[place]
    both = (painted > 0) & (before > 0)
    array[place] = np.where(both, np.minimum(painted, before), np.maximum(painted, before))
    return int(both.sum())


def _frames(index: TileIndex, source: Source, table: pd.DataFrame) -> Iterator[Any]:
    """Cells with their polygons in µm, by number, `OUTLINES` at a time; one frame without cells where there is none."""
    to_micron = np.linalg.inv(index.affine)
    for start in range(0, max(len(table), 1), OUTLINES):
        part = table.iloc[start : start + OUTLINES]
        polygons = shapely.transform(_outlines(index, source, part), lambda xy: apply_affine(to_micron, xy))
        for i in np.flatnonzero(~shapely.is_valid(polygons)):
            parts = shapely.get_parts(shapely.make_valid(polygons[i]))
            polygons[i] = max((p for p in parts if p.geom_type == "Polygon"), key=lambda p: p.area)
        ids = [f"{index.sample}_{source.prefix}{n:07d}" for n in part["number"]]
        yield cells_file.frame(ids, polygons, part["number"].to_numpy(), part["mean_flow"].to_numpy(float))


def _outlines(index: TileIndex, source: Source, part: pd.DataFrame) -> np.ndarray:
    """(n,) polygons of the objects, working pixels, from the files of their tiles."""
    found = np.empty(len(part), object)
    tile, label = part["tile"].to_numpy(), part["label"].to_numpy()
    for number in np.unique(tile):
        of_tile = _read(index, source, int(number), ["label", "geometry"]).set_index("label")["geometry"]
        mine = tile == number
        found[mine] = shapely.from_wkb(of_tile.loc[label[mine]].to_numpy(dtype=object))
    return found


def _method(index: TileIndex, source: Source) -> dict[str, Any]:
    """How it was made (from the first tile), with the seconds of all tiles (`seconds` and its parts)."""
    metas = [read_json(source.folder / t["tile_id"] / "meta.json", "the meta.json of a tile") for t in index.tiles]
    if not metas:
        return {}
    methods = [m["method"] for m in metas]
    return methods[0] | {key: round(sum(m.get(key, 0.0) for m in methods), 3) for key in methods[0] if key.endswith("seconds")}
