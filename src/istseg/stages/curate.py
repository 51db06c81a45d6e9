"""curate: tile + teacher labels + thresholds → `curation.json`, `patches/<tile_id>_w<gy>_<gx>.npz`. Keeps what nuclei and RNA density confirm."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from istseg.artifacts.files import write_json
from istseg.artifacts.labels import TileLabels
from istseg.artifacts.patches import Patch
from istseg.artifacts.thresholds import Thresholds
from istseg.artifacts.tiles import Tile
from istseg.curation import rules
from istseg.curation.density import rna_density
from istseg.errors import InputError
from istseg.network.field import count_window, reflect
from istseg.progress import track
from istseg.teachers.base import CELLS, NUCLEI

log = logging.getLogger("istseg")


@dataclass(frozen=True)
class Limits:
    """Thresholds of the rules [paper: T_contain, T_intersect, T_bg, T_b] and the kernel of the RNA density in µm."""

    contain: float
    intersect: float
    max_background: float
    background_density: float
    density_sigma_um: float


@dataclass
class CuratedTile:
    """Curated labels of a tile over its region.

    Attributes
    ----------
    labels
        Layer → int32 (y, x): kept cells, and stand-in nuclei with other ids.
    teach
        Layer → bool (y, x): pixels that may teach.
    counts
        Layer → rule → number of owned objects.
    last_cell
        Layer → largest cell id: labels above it are stand-in nuclei.
    nuclei
        int32 (y, x): all of the teacher's nuclei.

    """

    nuclei: np.ndarray
    labels: dict[str, np.ndarray]
    teach: dict[str, np.ndarray]
    counts: dict[str, dict[str, int]]
    last_cell: dict[str, int]


def run(
    *,
    tiles: list[Path],
    labels: Path,
    thresholds: Path,
    out: Path,
    contain: float,
    intersect: float,
    max_background: float,
    density_sigma_um: float,
    patches: bool,
    min_objects: int,
) -> None:
    """Curate tiles.

    Raises
    ------
    InputError
        If tiles, labels and thresholds do not belong together.

    """
    limits = Thresholds.read(thresholds)
    rule_limits = Limits(contain, intersect, max_background, limits.background_density, density_sigma_um)
    totals: dict[str, dict[str, int]] = {}
    names, written, sample = [], 0, limits.sample
    for folder in track(tiles, "curate"):
        tile = Tile.read(folder)
        taught = read_labels(Path(labels) / tile.tile_id, tile, sample)
        curated = curate_tile(tile, taught, rule_limits)
        names.append(tile.tile_id)
        for layer, counts in curated.counts.items():
            sums = totals.setdefault(layer, {})
            for rule, n in counts.items():
                sums[rule] = sums.get(rule, 0) + n
        if patches:
            written += write_patches(tile, curated, Path(out) / "patches", min_objects)
    write_json(Path(out) / "curation.json", {"sample": sample, "tiles": names, "by_layer": totals, "patches": written})
    log.info("%s: %d patches of %d tiles", sample, written, len(names))


def read_labels(folder: Path, tile: Tile, sample: str) -> TileLabels:
    """The teacher's labels of a tile; InputError when they are not of this tile or sample."""
    labels = TileLabels.read(folder)
    if not labels.sample == tile.sample == sample:
        raise InputError(f"{folder}: labels of {labels.sample}, tile of {tile.sample}, thresholds of {sample}; give files of one sample.")
    if labels.region != tile.region or labels.core != tile.core:
        raise InputError(f"{folder}: the labels cover {labels.region}, the tile {tile.region}; run teach again on these tiles.")
    return labels


def curate_tile(tile: Tile, taught: TileLabels, limits: Limits) -> CuratedTile:
    """Apply the rules to every cell layer of a tile.

    Objects of the whole region are judged, so that patches that reach past the core are right; only owned ones are counted.
    """
    density = rna_density(tile.transcript_counts(), limits.density_sigma_um, tile.working_um)
    background = density < limits.background_density
    nuclei = taught.layers[NUCLEI]
    result = CuratedTile(nuclei, {}, {}, {}, {})
    owned = taught.objects[taught.objects["owned"]]
    owned_nuclei = owned.loc[owned["layer"] == NUCLEI, "label"]
    for layer in (name for name in taught.layers if name.startswith(CELLS)):
        cells = taught.layers[layer]
        overlaps, nucleus_ids, cell_ids = rules.from_label_images(nuclei, cells)
        selection = rules.drop_background(
            rules.select(overlaps, limits.contain, limits.intersect),
            rules.share_in(cells, cell_ids, background),
            rules.share_in(nuclei, nucleus_ids, background),
            limits.max_background,
        )
        result.labels[layer] = rules.curated_labels(cells, nuclei, cell_ids[selection.kept_cells], nucleus_ids[selection.stand_ins])
        result.last_cell[layer] = int(cells.max(initial=0))
        result.teach[layer] = rules.teaching_pixels(result.labels[layer], background, list(taught.layers.values()))
        owned_cells = np.isin(cell_ids, owned.loc[owned["layer"] == layer, "label"])
        result.counts[layer] = {
            **_count("cells", rules.CELL_RULES, selection.cell_rule[owned_cells]),
            **_count("nuclei", rules.NUCLEUS_RULES, selection.nucleus_rule[np.isin(nucleus_ids, owned_nuclei)]),
        }
    return result


def write_patches(tile: Tile, curated: CuratedTile, folder: Path, min_objects: int) -> int:
    """Write a patch for each of the core's windows in which a layer has enough kept objects; gives their number.

    Outside the mosaic stains and transcripts are reflected, as at inference; labels are not, and nothing teaches there: a cell cut by the mosaic's edge has
    its centre inside.
    """
    grid = tile.window_grid
    counts = tile.transcript_counts()
    names = list(tile.sample_genes())
    genes = tile.gene_map(names)
    raw = tile.raw_stains()
    layers = list(curated.labels)
    y0, x0, y1, x1 = tile.region
    written = 0
    for gy, gx in tile.windows:
        box = grid.window_box(gy, gx)
        inside = grid.clip(box)
        part = np.s_[inside[0] - y0 : inside[2] - y0, inside[1] - x0 : inside[3] - x0]
        objects = max((len(np.setdiff1d(curated.labels[layer][part], [0])) for layer in layers), default=0)
        if objects < min_objects:
            continue
        in_patch = inside[0] - box[0], inside[1] - box[1], inside[2] - box[0], inside[3] - box[1]
        place = np.s_[:, in_patch[0] : in_patch[2], in_patch[1] : in_patch[3]]
        labels = np.zeros((len(layers), grid.window, grid.window), np.int32)
        teach = np.zeros(labels.shape, bool)
        nuclei = np.zeros(labels.shape[1:], np.int32)
        nuclei[place[1:]] = curated.nuclei[part]
        labels[place] = [curated.labels[layer][part] for layer in layers]
        teach[place] = [curated.teach[layer][part] for layer in layers]
        rows, columns = reflect(box[0], box[2], grid.height) - y0, reflect(box[1], box[3], grid.width) - x0
        # Only the genes that are there: a patch does not depend on what else lies in its tile.
        shown, gene_map = np.unique(np.append(0, count_window(tile, genes, box)), return_inverse=True)
        Patch(
            sample=tile.sample,
            window=(gy, gx),
            overlap=grid.overlap,
            stain_names=tile.stains,
            ranges=tile.ranges,
            label_names=layers,
            working_um=tile.working_um,
            stains=raw[:, rows[:, None], columns],
            counts=count_window(tile, counts, box).astype(np.uint16),
            labels=labels,
            teach=teach,
            stand_ins=[[int(i) for i in np.unique(image) if i > curated.last_cell[layer]] for layer, image in zip(layers, labels, strict=True)],
            nuclei=nuclei,
            genes=gene_map[1:].reshape(nuclei.shape).astype(np.uint16),
            gene_names=[names[i - 1] for i in shown[1:]],
            mosaic_box=in_patch,
        ).write(folder / f"{tile.tile_id}_w{gy}_{gx}.npz")
        written += 1
    return written


def _count(kind: str, names: tuple[str, ...], rule_of: np.ndarray) -> dict[str, int]:
    return {f"{kind}_{name}": int((rule_of == name).sum()) for name in names}
