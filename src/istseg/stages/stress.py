"""stress: converted sample + model → how the segmentation of a region holds up when contours, stains and transcripts get worse [paper: Fig. 4].

Out: `stress.json`, `stress.tsv` (one row per condition), `stress.png` (curves), `stress_pictures/*.png` (clean and degraded, with cells). The
sample is only read.
"""

from __future__ import annotations

import csv
import logging
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from istseg.artifacts.contours import outlines
from istseg.artifacts.files import whole, write_json
from istseg.artifacts.sample import Sample
from istseg.artifacts.tiles import Tile
from istseg.converted import Points, StainImage
from istseg.curation.rules import share_in
from istseg.errors import InputError
from istseg.network import weights
from istseg.network.inference import Predictor, choose_precision, open_device
from istseg.progress import track
from istseg.qc import drawing
from istseg.region import box_text, locate
from istseg.stages.segment import filter_of, predict_tile
from istseg.stress import degrade
from istseg.stress.judge import MEASURES, Clean, Molecules
from istseg.stress.region import cut, densest
from istseg.teachers.base import CELLS
from istseg.teachers.vendor import VendorTeacher
from istseg.teachers.watershed import Sizes, label_nuclei

log = logging.getLogger("istseg")

KINDS = {
    "contours": "share of the contour that is gone",
    "dim": "share of the membrane stains' light that is left",
    "blur": "blur of the membrane stains, µm",
    "rna": "share of the transcripts that is left",
}
"""What is made worse, and the unit of its levels."""
MAX_SIDE_UM = 1000.0
_PICTURE_UM = 100.0
_PICTURE_ZOOM = 2
_PICTURES = "stress_pictures"
_OWN_PICTURE = re.compile(rf"(clean|({'|'.join(KINDS)})_[0-9.e+-]+)\.png")
_CURVES = ("pixel_iou", "rna_iou", "ap50", "affected_pixel_iou")


@dataclass(frozen=True)
class Condition:
    """One way in which the region is made worse: a key of `KINDS` and its level."""

    kind: str
    level: float

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.level:g}"


def run(
    *,
    sample_json: Path,
    zarr: Path,
    model: Path,
    out: Path,
    model_sha256: str | None,
    region: str | None,
    side_um: float,
    levels: dict[str, list[float]],
    cells: float,
    vendor_cells: Path | None,
    sizes: Sizes,
    contain: float,
    intersect: float,
    spurious_percentile: float,
    working_um: float,
    batch_size: int,
    device: str,
    precision: str,
    seed: int,
) -> None:
    """Segment a region as it is and made worse, and compare.

    Parameters
    ----------
    zarr
        `<sample>.zarr`; not changed.
    model, model_sha256
        Weights and the digest that they must have.
    region
        `x0,y0,x1,y1` in µm; None: the box of `side_um` with the most transcripts.
    levels
        Levels of each of `KINDS`.
    cells
        Share of the cells whose contours are broken.
    vendor_cells
        Whose outlines are broken; None: those of the clean segmentation.
    sizes
        Of the nuclei that spurious and inconsistent cells are judged by (watershed on the nucleus stain).

    Raises
    ------
    InputError
        If files do not fit together, the region is outside or wider than 1000 µm, levels make no sense, membrane stains are asked for and there are none, no
        cell's contour can be broken, or the folder of the pictures holds what this stage did not write.
    DeviceError
        If the device is not there.
    """
    sample, out = Sample.read(sample_json), Path(out)
    _check(sample, region, levels, out / _PICTURES)
    place = open_device(device)
    network, card = weights.load(model, model_sha256)
    image, points = StainImage(zarr, sample), Points(zarr, sample)
    vendor = VendorTeacher(vendor_cells, sizes) if vendor_cells else None
    squares, genes = points.survey()
    if card.genes:
        card.check_panel(genes, sample.sample)
    box = locate(sample, region) if region else densest(squares, side_um, sample)
    _check_size(sample, box)
    tile, stains, transcripts = cut(sample, image, points, box, working_um, genes)
    predictor = Predictor(network, card, place, choose_precision(precision, place))
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(tile, genes, predictor, batch_size, Path(scratch))
        labels = bench.segment(stains, transcripts)
        if not labels.any():
            raise InputError(f"{sample.sample}: {card.name} finds no cell in the region {box_text(sample, box)}; choose another one.")
        nuclei = label_nuclei(tile.normalised()[0], working_um, sizes.nucleus_diameter_um, sizes.min_nucleus_area_um2)
        prior = vendor.label(tile)[f"{CELLS}vendor"] if vendor else labels
        broken = degrade.affected(prior, cells, seed)
        if levels.get("contours") and not len(broken):
            raise InputError(_nothing_broken(box_text(sample, box), len(np.unique(prior[prior > 0])), cells, vendor_cells))
        ids = np.unique(labels)[1:]
        # Mostly in a cell that loses contour: with the model's own outlines these are the broken cells themselves.
        hit = ids[share_in(labels, ids, np.isin(prior, broken)) > 0.5]
        clean = Clean(labels, nuclei, bench.molecules(transcripts), contain, intersect, spurious_percentile)
        rows = [{"kind": "clean", "level": None} | clean.judge(labels, clean.molecules)]
        middle = _middle(labels.shape, working_um)
        shown = {"clean": (tile.normalised()[:, *middle], labels[middle])}
        for condition in track([Condition(kind, level) for kind in KINDS for level in levels.get(kind, [])], "stress"):
            worse, fewer = stains.copy(), transcripts
            if condition.kind == "contours":
                worse[1:] = degrade.break_contours(stains[1:], prior, broken, condition.level, working_um, seed)
            elif condition.kind == "dim":
                worse[1:] = degrade.dim(stains[1:], [low for low, _ in tile.ranges[1:]], condition.level)
            elif condition.kind == "blur":
                worse[1:] = degrade.blur(stains[1:], condition.level / working_um)
            else:
                fewer = degrade.fewer_transcripts(transcripts, condition.level, seed)
            found = bench.segment(worse, fewer)
            judged = clean.judge(found, bench.molecules(fewer), hit if condition.kind == "contours" else None)
            rows.append({"kind": condition.kind, "level": condition.level} | judged)
            shown[condition.name] = tile.normalised()[:, *middle], found[middle]
    pictures = _draw_pictures(out / _PICTURES, shown, working_um)
    record = {
        "sample": sample.sample,
        "model": card.name,
        "model_sha256": card.sha256,
        "region_um": box_text(sample, box),
        "region_chosen_by": "user" if region else f"most transcripts in {side_um:g} µm",
        "contours_of": "vendor" if vendor else "clean segmentation",
        "cells_with_broken_contours": len(broken),
        "share_of_cells": cells,
        "nuclei": int(len(np.unique(nuclei)) - 1),
        "transcripts": len(clean.molecules.flat),
        "seed": seed,
        "method": predictor.method,
        "measures": MEASURES,
        "kinds": KINDS,
        "conditions": rows,
        "pictures": pictures,
    }
    write_json(out / "stress.json", record)
    _write_table(out / "stress.tsv", rows)
    _draw_curves(out / "stress.png", rows)
    log.info("%s: %d conditions on the region %s", sample.sample, len(rows) - 1, record["region_um"])


class _Bench:
    """Segments states of one tile."""

    def __init__(self, tile: Tile, genes: dict[str, int], predictor: Predictor, batch_size: int, scratch: Path):
        self._tile, self._genes, self._predictor, self._batch_size, self._scratch = tile, genes, predictor, batch_size, scratch
        self._states = 0

    def segment(self, stains: np.ndarray, transcripts: pd.DataFrame) -> np.ndarray:
        """(y, x) int32 cells; the tile is left in this state."""
        # A folder for each state: the predictor keeps the transcripts of the folder that it saw last. One is there at a time.
        before = self._tile.folder
        self._tile.write(self._scratch / f"state{self._states}", stains, transcripts, self._genes)
        if self._states:
            shutil.rmtree(before)
        self._states += 1
        return predict_tile(self._tile, self._predictor, filter_of(self._predictor.card), self._batch_size)[0]

    def molecules(self, transcripts: pd.DataFrame) -> Molecules:
        """Transcripts of genes by pixel."""
        of_genes = transcripts[~transcripts["is_control"]]
        y, x = (np.floor(of_genes[name].to_numpy()).astype(np.int64) for name in ("y_wpx", "x_wpx"))
        height, width = self._tile.shape
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return Molecules(y[inside] * width + x[inside])


def _check(sample: Sample, region: str | None, levels: dict[str, list[float]], pictures: Path) -> None:
    """What can be told before any work."""
    problems = []
    stained = [kind for kind in ("contours", "dim", "blur") if levels.get(kind)]
    if stained and not sample.membranes:
        problems.append(f"{sample.sample}: has no membrane stain to make worse; give {' '.join(f'--{kind} none' for kind in stained)}.")
    for kind, values in levels.items():
        limit = 20.0 if kind == "blur" else 1.0
        if bad := [v for v in values if not 0 <= v <= limit]:
            problems.append(f"--{kind} {','.join(f'{v:g}' for v in bad)}: must lie between 0 and {limit:g} ({KINDS[kind]}).")
        if len(set(values)) < len(values):
            problems.append(f"--{kind}: a level is given twice.")
    if not any(levels.values()):
        problems.append("nothing is made worse: give levels for one of " + ", ".join(f"--{kind}" for kind in KINDS) + ".")
    if region:
        try:
            locate(sample, region)
        except InputError as error:
            problems += error.problems
    problems += _foreign(pictures)
    if problems:
        raise InputError(problems)


def _foreign(folder: Path) -> list[str]:
    """The folder of the pictures is replaced as a whole: what else it holds is the user's."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        return [f"{folder}: is a file, where the folder of the pictures has its place; move it away or give another --out."]
    others = sorted(p.name for p in folder.iterdir() if p.is_dir() or not _OWN_PICTURE.fullmatch(p.name))
    if not others:
        return []
    listing = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
    return [f"{folder}: holds {listing}, which this command did not write, and would be replaced; move it away or give another --out."]


def _nothing_broken(region: str, n: int, share: float, vendor_cells: Path | None) -> str:
    """Why no contour of the region can be broken, `n` cells being there, and what to do."""
    if not n:
        return (
            f"--vendor-cells {vendor_cells}: has no cell in the region {region}, so no contour can be broken. Is it of another sample? Give the "
            "vendor_cells.parquet of this sample or another --region, or leave it out: then contours of the clean segmentation are broken."
        )
    return f"--cells {share:g}: is none of the {n} cells in the region {region}, so no contour can be broken; give a larger share, or --contours none."


def _check_size(sample: Sample, box: tuple[float, float, float, float]) -> None:
    # The difference of the ends of a box of 1000 µm may be a hair more.
    side = round(max(box[2] - box[0], box[3] - box[1]), 6)
    if side > MAX_SIDE_UM:
        raise InputError(f"the region {box_text(sample, box)} is {side:.0f} µm wide; at most {MAX_SIDE_UM:g} µm: choose a part of it.")


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with whole(path) as part, open(part, "w", newline="") as stream:
        writer = csv.DictWriter(stream, ["kind", "level", *MEASURES], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "" if v is None else f"{v:.4f}" if isinstance(v, float) and k != "level" else v for k, v in row.items()} for row in rows)


def _draw_curves(path: Path, rows: list[dict[str, Any]]) -> None:
    """One panel per kind: measures over the level; the clean state is where nothing is gone."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    figure = Figure(figsize=(4 * len(kinds), 3.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["level"])
        for measure in _CURVES:
            at = [(row["level"], row[measure]) for row in mine if row.get(measure) is not None]
            if at:
                axes.plot(*zip(*at, strict=True), marker="o", label=measure)
        if kind in ("dim", "rna"):
            axes.invert_xaxis()
        axes.set(xlabel=KINDS[kind], ylim=(0, 1.02), title=kind)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with whole(path) as part:
        figure.savefig(part, dpi=110, metadata={"Software": None})


def _middle(shape: tuple[int, int], um: float) -> tuple[slice, slice]:
    """The part of the region that is shown."""
    side = round(_PICTURE_UM / um)
    y0, x0 = (max((n - side) // 2, 0) for n in shape)
    return slice(y0, y0 + side), slice(x0, x0 + side)


def _draw_pictures(folder: Path, shown: dict[str, tuple[np.ndarray, np.ndarray]], um: float) -> list[str]:
    """Each state's normalised stains with its cells (yellow) and those of the clean state (white)."""
    before = _outlines(shown["clean"][1])
    files = []
    with whole(folder) as part:
        part.mkdir()
        for name, (stains, labels) in shown.items():
            picture = np.kron(drawing.composite(stains[0], stains[1:]), np.ones((_PICTURE_ZOOM, _PICTURE_ZOOM, 1), np.uint8))
            drawing.contours(picture, before, drawing.NEIGHBOUR)
            drawing.contours(picture, _outlines(labels), drawing.CELL)
            drawing.write_png(part / f"{name}.png", drawing.scale_bar(picture, um / _PICTURE_ZOOM))
            files.append(f"{folder.name}/{name}.png")
    return files


def _outlines(labels: np.ndarray) -> np.ndarray:
    ids = np.unique(labels)
    return shapely.transform(outlines(labels, ids[ids > 0])[1], lambda xy: xy * _PICTURE_ZOOM)
