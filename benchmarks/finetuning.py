"""Fine-tuning on simulated tissue with a domain shift: does it help where the base fails, and is it refused where the labels are wrong?

The shift is autofluorescence: granules that shine in every stain, much brighter than those that the base was taught. The teacher's labels are the true
cells with the errors of a good automatic segmentation (20 % missing, 5 % merged, outlines jittered); they enter as the vendor's cells and are curated by
the pipeline. Models train on one sample and are scored on another one of another seed, by its truth, which nothing else sees.

    python benchmarks/finetuning.py                      # one fine-tuning per set of labels, sound and poisoned; the gate's decisions
    python benchmarks/finetuning.py --table conditions   # one fine-tuning, scored with broken contours and with less RNA
    python benchmarks/finetuning.py --table seeds        # the same fine-tuning with two seeds: how far the cells of another sample agree
    python benchmarks/finetuning.py --base other.safetensors --epochs 20 --size-um 400

The first table has samples without shift too, where the base is good and wrong labels can only harm; with the watershed as teacher, the base is better than its
labels. By the truth, a model is worse when it loses more than 0.01 of AP@0.5 or 0.02 of the mean best IoU. Simulated tissue only: the figures compare models
with each other and do not say how good they are on real tissue.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
import torch
from scipy import sparse

from istseg.artifacts import cells as cells_file
from istseg.artifacts.genes import draw_shares
from istseg.artifacts.labels import TileLabels
from istseg.artifacts.sample import apply_affine
from istseg.artifacts.tiles import Tile
from istseg.cli import road, tools
from istseg.cli.options import Platform, TeacherName
from istseg.qc import agreement
from istseg.qc.matching import boundary_ious, match_labels, scores
from istseg.teachers.vendor import rasterise

BASE = Path(__file__).resolve().parents[1] / "assets" / "models" / "istseg-sim-v2.safetensors"
STAIN = "Cellbound1"
TRANSCRIPTS = "detected_transcripts.csv"
IOU = 0.5
MISSING, MERGED, JITTER_UM = 0.2, 0.05, 0.25
"""Errors of the sound teacher: shares of the cells, standard deviation of the outline."""
CONTOURS = (0.1, 0.3, 0.5, 0.7, 0.9)
DEGRADED = 0.3
SHIFT = 3.0
"""Default autofluorescence of the shifted tissue."""
RNA_KEPT = (0.9, 0.8, 0.7, 0.6, 0.5)
MEASURES = ("found", "AP@0.5", "mean best IoU", "boundary IoU")


@dataclass
class Sample:
    """A simulated sample of one tile."""

    folder: Path

    @cached_property
    def tile(self) -> Tile:
        return Tile.read(next(p.parent for p in (self.folder / "tiles").glob("*/tile.json")))

    def shapes(self, name: str) -> gpd.GeoDataFrame:
        """True `cells` or `nuclei`, µm."""
        found = gpd.read_parquet(self.folder / "sim" / "truth" / f"{name}.parquet")
        return found[shapely.area(found.geometry.to_numpy()) > 0].reset_index(drop=True)

    @cached_property
    def truth(self) -> np.ndarray:
        """(y, x) int32 true cells."""
        return self.label_image(self.shapes("cells").geometry.to_numpy())

    def label_image(self, polygons: np.ndarray) -> np.ndarray:
        """(y, x) int32 of polygons in µm."""
        there = shapely.transform(polygons, lambda xy: apply_affine(self.tile.affine, xy))
        return rasterise(there, np.arange(1, len(there) + 1), self.tile.region)

    def cells_of_transcripts(self, labels: np.ndarray) -> np.ndarray:
        """Cell of each transcript of the tile in a label image (y, x), 0 for none."""
        inside, flat = self.tile.pixels(self.tile.transcripts(["y_wpx", "x_wpx"]))
        return labels.ravel()[flat[inside]]


def make(
    folder: Path, options: argparse.Namespace, seed: int, autofluorescence: float, contour: float = 0.0, stains: str = STAIN, degraded: float = DEGRADED
) -> Sample:
    """Simulate, convert, tile; with `contour`, a share `degraded` of the cells loses so much of its contour in every membrane stain."""
    tools.simulate(
        out=folder / "sim",
        width_um=options.size_um,
        height_um=options.size_um,
        planes=1,
        stains=stains,
        degraded_fraction=degraded if contour else 0.0,
        degraded_contour=contour,
        transcripts_per_um2=options.transcripts,
        autofluorescence=autofluorescence,
        seed=seed,
    )
    return prepared(folder, options)


def prepared(folder: Path, options: argparse.Namespace) -> Sample:
    """Convert and tile the raw folder `sim/raw`."""
    road.convert(raw=folder / "sim" / "raw", sample="s", platform=Platform.merscope, out=folder / "convert", z_planes="0")
    road.tile(sample_json=folder / "convert" / "sample.json", zarr=folder / "convert" / "s.zarr", out=folder, tile_um=options.size_um + 100)
    return Sample(folder)


def with_less_rna(sample: Sample, folder: Path, kept: float, options: argparse.Namespace) -> Sample:
    """The same raw folder with a share of its transcripts, converted and tiled again."""
    raw, less = sample.folder / "sim" / "raw", folder / "sim" / "raw"
    less.mkdir(parents=True)
    (folder / "sim" / "truth").symlink_to((sample.folder / "sim" / "truth").absolute())
    for path in raw.iterdir():
        if path.name != TRANSCRIPTS:
            (less / path.name).symlink_to(path.absolute())
    lines = (raw / TRANSCRIPTS).read_text().splitlines(keepends=True)
    chosen = draw_shares(np.arange(len(lines) - 1), options.seed) < kept
    (less / TRANSCRIPTS).write_text(lines[0] + "".join(line for line, keep in zip(lines[1:], chosen.tolist(), strict=True) if keep))
    return prepared(folder, options)


# Labels that a teacher may give: true cells and nuclei (µm) → cells.


def sound(cells: np.ndarray, nuclei: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As of a good automatic segmentation."""
    draw = rng.random(len(cells))
    merged = _with_neighbour(cells, np.flatnonzero(draw > 1 - MERGED / 2), 0.5)
    result = np.concatenate([cells[(draw >= MISSING) & ~merged.used], merged.cells])
    return np.array([_jittered(cell, rng) for cell in result], object)


def nucleus_sized(cells: np.ndarray, nuclei: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cells are their nuclei with a narrow rim; cells without nucleus are missing."""
    return shapely.intersection(shapely.buffer(nuclei, 0.4), shapely.union_all(cells))


def pairs(cells: np.ndarray, nuclei: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every cell is merged with a neighbour."""
    merged = _with_neighbour(cells, np.arange(len(cells)), 0.5)
    return np.concatenate([cells[~merged.used], merged.cells])


def shifted(cells: np.ndarray, nuclei: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """2 µm to the right."""
    return shapely.transform(cells, lambda xy: xy + (2.0, 0.0))


def shrunk(cells: np.ndarray, nuclei: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """1.5 µm narrower on every side, but never without their nucleus."""
    core = shapely.buffer(cells, -1.5)
    tree = shapely.STRtree(nuclei)
    return np.array([_largest(shapely.union_all([c, *(nuclei[i] for i in tree.query(cell, "contains"))])) for c, cell in zip(core, cells, strict=True)], object)


def grown(cells: np.ndarray, nuclei: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """1.5 µm wider on every side, where no neighbour is."""
    return shapely.buffer(cells, 1.5)


def split(cells: np.ndarray, nuclei: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A line beside the nucleus cuts every cell in two."""
    tree = shapely.STRtree(nuclei)
    parts = []
    for cell in cells:
        inside = tree.query(cell, "contains")
        centre = cell.centroid if not len(inside) else nuclei[inside[0]].centroid
        reach = 0.0 if not len(inside) else np.sqrt(nuclei[inside[0]].area / np.pi) * 1.2
        y = centre.y + reach
        x0, y0, x1, y1 = cell.bounds
        parts += [cell.intersection(shapely.box(x0, y0, x1, y)), cell.intersection(shapely.box(x0, y, x1, max(y1, y)))]
    return np.array([_largest(p) for p in parts if p.area > 5], object)


Labels = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
POISONS: dict[str, Labels] = {
    "cells of the nucleus's size": nucleus_sized,
    "cells 1.5 µm too narrow": shrunk,
    "cells 1.5 µm too wide": grown,
    "cells shifted by 2 µm": shifted,
    "cells merged by pairs": pairs,
    "cells cut in two": split,
}


@dataclass
class _Merged:
    cells: np.ndarray
    used: np.ndarray


def _with_neighbour(cells: np.ndarray, first: np.ndarray, reach_um: float) -> _Merged:
    """Union of cells with their nearest neighbour within reach that is not merged yet."""
    used = np.zeros(len(cells), bool)
    tree = shapely.STRtree(cells)
    merged = []
    for i in first.tolist():
        if used[i]:
            continue
        near = [j for j in tree.query(cells[i].buffer(reach_um), "intersects").tolist() if j != i and not used[j]]
        if near:
            j = min(near, key=lambda j: (cells[i].centroid.distance(cells[j].centroid), j))
            used[[i, j]] = True
            merged.append(_largest(shapely.union(cells[i].buffer(reach_um / 2), cells[j].buffer(reach_um / 2)).buffer(-reach_um / 2)))
    return _Merged(np.array(merged, object), used)


def _jittered(cell: shapely.Geometry, rng: np.random.Generator) -> shapely.Geometry:
    """Outline moved in and out along its rays by a smooth noise."""
    outline = shapely.get_coordinates(cell.exterior.segmentize(0.5))
    from_centre = outline - shapely.get_coordinates(cell.centroid)
    angle, waves = np.arctan2(from_centre[:, 1], from_centre[:, 0]), np.arange(5)
    noise = (rng.standard_normal((2, 5)) @ np.stack([np.cos(np.outer(waves, angle)), np.sin(np.outer(waves, angle))])).sum(0)[0] / np.sqrt(5)
    length = np.maximum(np.linalg.norm(from_centre, axis=1), 0.1)
    moved = shapely.Polygon(outline + from_centre / length[:, None] * (JITTER_UM * noise)[:, None])
    return _largest(moved.buffer(0))


def _largest(shape: shapely.Geometry) -> shapely.Geometry:
    """The largest polygon of a shape."""
    parts = [p for p in shapely.get_parts(shape) if p.geom_type == "Polygon"]
    return max(parts, key=lambda p: p.area) if parts else shapely.Polygon()


def labels_of(sample: Sample, labels: Labels, seed: int) -> np.ndarray:
    """The polygons of a teacher (µm) for a sample."""
    cells = labels(sample.shapes("cells").geometry.to_numpy(), sample.shapes("nuclei").geometry.to_numpy(), np.random.default_rng(seed))
    return cells[shapely.area(cells) > 0]


def curated(sample: Sample, folder: Path, polygons: np.ndarray | None) -> Path:
    """Patches of a teacher's labels (None: of the watershed), by the pipeline's rules."""
    vendor = None
    if polygons is not None:
        folder.mkdir(parents=True, exist_ok=True)
        vendor = folder / "vendor_cells.parquet"
        cells_file.write(vendor, cells_file.frame([str(i) for i in range(len(polygons))], polygons))
    name = TeacherName.watershed if vendor is None else TeacherName.vendor
    road.teach(tile=[sample.tile.folder], out=folder / "teach", teacher=name, vendor_cells=vendor)
    road.calibrate(labels=[folder / "teach"], out=folder / "calibrate")
    road.curate(tile=[sample.tile.folder], labels=folder / "teach", thresholds=folder / "calibrate" / "thresholds.json", out=folder / "curate")
    return folder / "curate" / "patches"


def fine_tune(folder: Path, patches: Path, options: argparse.Namespace) -> tuple[Path, dict]:
    """Train from the base → (weights of the fine-tuned model, also where the gate refuses it, or the base where the gate forbade the training; decision)."""
    road.train(
        patches=[patches],
        out=folder,
        base=str(options.base),
        epochs=options.epochs,
        crop_wpx=options.crop_wpx,
        device=options.device,
        seed=options.seed,
    )
    decision = json.loads((folder / "decision.json").read_text())
    return folder / ("refused.safetensors" if decision["finetuned"] and not decision["accepted"] else "model.safetensors"), decision


def predicted(sample: Sample, model: Path, folder: Path, options: argparse.Namespace) -> np.ndarray:
    """(y, x) int32 cells that a model finds."""
    road.segment(tile=[sample.tile.folder], model=model, out=folder, device=options.device)
    return TileLabels.read(folder / sample.tile.tile_id).layers["cells"]


def score(sample: Sample, labels: np.ndarray) -> dict[str, float]:
    """Cells against the truth."""
    overlap = match_labels(sample.truth, labels)
    figures = scores(overlap, (IOU,))
    boundary = boundary_ious(sample.truth, labels, overlap, np.arange(len(overlap.truth_ids)))
    values = (figures[f"found@{IOU:g}"], figures[f"ap@{IOU:g}"], figures["mean_best_iou"], float(np.mean(boundary)))
    return dict(zip(MEASURES, values, strict=True))


def texts(figures: dict[str, float]) -> list[str]:
    return [f"{value:.3f}" for value in figures.values()]


def gate_table(folder: Path, options: argparse.Namespace) -> None:
    """Rows of every set of labels: teacher, fine-tuned model, the gate's decision and whether it agrees with the truth."""
    show_head(("sample", "labels", "model", *MEASURES, "decision", "by the truth", "training, s"))
    wanted = options.cases or ["sound", *POISONS]
    shift = {name: labels for name, labels in {"sound": sound, **POISONS}.items() if name in wanted}
    agreed = gate_block("shift", make_pair(folder / "shift", options, options.autofluorescence), shift, options)
    # Without shift the base is good, and most wrong labels make it worse.
    plain = {name: labels for name, labels in POISONS.items() if name in wanted}
    agreed += gate_block("no shift", make_pair(folder / "plain", options, 0.0), plain, options)
    if not options.cases:
        agreed += gate_block("no shift, half of 30 % of the contours gone", make_pair(folder / "broken", options, 0.0, 0.5), {"watershed": None}, options)
    harmful = [harm for harm, accepted in agreed if accepted]
    print(f"\n{len(agreed)} fine-tunings, {len(harmful)} accepted, of which {sum(harmful)} are worse than the base by the truth.")


def make_pair(folder: Path, options: argparse.Namespace, autofluorescence: float, contour: float = 0.0) -> tuple[Sample, Sample]:
    """A sample to train on and another one to score on."""
    return tuple(make(folder / name, options, options.seed + i, autofluorescence, contour) for i, name in enumerate(("train", "test")))


@dataclass
class Outcome:
    """One fine-tuning: figures of the teacher and of the fine-tuned model on the test sample, the model, the gate's decision, seconds of the training."""

    teacher: dict[str, float]
    tuned: dict[str, float]
    model: Path
    decision: dict
    seconds: float

    @property
    def verdict(self) -> str:
        return "accepted" if self.decision["accepted"] else "refused" if self.decision["finetuned"] else "not trained"


def tune(name: str, labels: Labels | None, pair: tuple[Sample, Sample], options: argparse.Namespace) -> Outcome:
    """Fine-tune on the first sample with a set of labels (None: the watershed), score on the second."""
    train, test = pair
    folder = train.folder / name.replace(" ", "-")
    patches = curated(train, folder, None if labels is None else labels_of(train, labels, options.seed))
    begun = time.monotonic()
    model, decision = fine_tune(folder / "train", patches, options)
    seconds = time.monotonic() - begun
    teacher = watershed(test, test.folder / "watershed") if labels is None else test.label_image(labels_of(test, labels, options.seed + 1))
    return Outcome(score(test, teacher), score(test, predicted(test, model, folder / "segment", options)), model, decision, seconds)


def gate_block(title: str, pair: tuple[Sample, Sample], cases: dict[str, Labels | None], options: argparse.Namespace) -> list[tuple[bool, bool]]:
    """Rows of one kind of sample; gives (worse by the truth, accepted) of each fine-tuning. Labels None: the watershed."""
    test = pair[1]
    if not cases:
        return []
    before = score(test, predicted(test, options.base, test.folder / "zero", options))
    show((title, "", "zero-shot", *texts(before), "", "", ""))
    outcomes = []
    for name, labels in cases.items():
        outcome = tune(name, labels, pair, options)
        show((title, name, "teacher", *texts(outcome.teacher), "", "", ""))
        after = outcome.tuned
        worse = after["AP@0.5"] < before["AP@0.5"] - 0.01 or after["mean best IoU"] < before["mean best IoU"] - 0.02
        better = after["AP@0.5"] > before["AP@0.5"] + 0.01
        verdict = "worse" if worse else "better" if better else "the same"
        outcomes.append((worse, outcome.decision["accepted"]))
        show((title, name, "fine-tuned", *texts(after), outcome.verdict, verdict, f"{outcome.seconds:.0f}"))
        print(f"{title}, {name}: {outcome.decision['reason']}", file=sys.stderr, flush=True)
    return outcomes


def watershed(sample: Sample, folder: Path) -> np.ndarray:
    """(y, x) int32 cells of the watershed teacher."""
    road.teach(tile=[sample.tile.folder], out=folder)
    labels = TileLabels.read(folder / sample.tile.tile_id)
    return next(image for name, image in labels.layers.items() if name.startswith("cells_"))


def conditions_table(folder: Path, options: argparse.Namespace) -> None:
    """One row per condition of the test sample and segmentation; the fine-tuned model has learnt on the clean training sample."""
    train = make(folder / "train", options, options.seed, options.autofluorescence)
    model, decision = fine_tune(folder / "model", curated(train, folder / "taught", labels_of(train, sound, options.seed)), options)
    print(decision["reason"], file=sys.stderr, flush=True)
    show_head(("condition", "segmentation", *MEASURES))
    clean = make(folder / "test", options, options.seed + 1, options.autofluorescence)
    samples = {"clean": lambda at: clean}
    for c in CONTOURS:
        samples[f"{c:g} of the contour of {DEGRADED:.0%} gone"] = lambda at, c=c: make(at, options, options.seed + 1, options.autofluorescence, c)
    for kept in RNA_KEPT:
        samples[f"{kept:.0%} of the RNA"] = lambda at, kept=kept: with_less_rna(clean, at, kept, options)
    for i, (name, maker) in enumerate(samples.items()):
        at = folder / f"condition{i}"
        sample = maker(at)
        show((name, "zero-shot", *texts(score(sample, predicted(sample, options.base, at / "zero", options)))))
        show((name, "fine-tuned", *texts(score(sample, predicted(sample, model, at / "tuned", options)))))
        show((name, "watershed", *texts(score(sample, watershed(sample, at / "watershed")))))
    # Its errors were made from the truth: no condition of the image changes them.
    show(("all", "teacher that it learnt from", *texts(score(clean, clean.label_image(labels_of(clean, sound, options.seed + 1))))))


def seeds_table(folder: Path, options: argparse.Namespace) -> None:
    """One fine-tuning with two seeds: each against the truth of another sample, and how far their cells and transcripts there agree."""
    train, test = make_pair(folder, options, options.autofluorescence)
    patches = curated(train, folder / "taught", labels_of(train, sound, options.seed))
    show_head(("model", *MEASURES))
    show(("zero-shot", *texts(score(test, predicted(test, options.base, folder / "zero", options)))))
    found = []
    for seed in (options.seed, options.seed + 1):
        model, _ = fine_tune(folder / f"model{seed}", patches, argparse.Namespace(**{**vars(options), "seed": seed}))
        found.append(predicted(test, model, folder / f"segment{seed}", options))
        show((f"fine-tuned, seed {seed}", *texts(score(test, found[-1]))))
    between = match_labels(*found)
    same, (first, second) = int((between.matches(IOU) >= 0).sum()), (len(between.truth_ids), len(between.predicted_ids))
    of_first, of_second = (test.cells_of_transcripts(labels) for labels in found)
    counts = sparse.csr_matrix((np.ones(len(of_first)), (of_first, of_second)))
    joint = counts[1:, 1:]
    ari = agreement.transcripts(joint, *(np.bincount(of)[1:] for of in (of_first, of_second)), len(of_first))["ari"]
    print(f"\nthe two seeds: {first} and {second} cells, {same} of them the same at IoU >= {IOU:g}; adjusted Rand index over all transcripts {ari:.3f}")


TABLES = {"gate": gate_table, "conditions": conditions_table, "seeds": seeds_table}


def show_head(columns: tuple[str, ...]) -> None:
    show(columns)
    print("|" + " --- |" * len(columns), flush=True)


def show(row: tuple[str, ...]) -> None:
    print("| " + " | ".join(row) + " |", flush=True)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("istseg", "torch", "numpy", "scikit-image"))
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} torch threads; Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=list(TABLES), default="gate")
    parser.add_argument("--cases", nargs="+", choices=["sound", *POISONS], help="Only these labels; default: all, and the watershed.")
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--size-um", type=float, default=250.0, help="Side of the samples.")
    parser.add_argument("--transcripts", type=float, default=0.5, help="Per µm².")
    parser.add_argument("--autofluorescence", type=float, default=SHIFT, help="The shift; see `istseg simulate`.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--crop-wpx", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="Keep the files here; default: a temporary folder.")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        TABLES[options.table](options.folder or Path(scratch), options)
    print(
        f"\nsimulated MERSCOPE, {options.size_um:g} x {options.size_um:g} µm, stains DAPI;{STAIN}, {options.transcripts:g} transcripts/µm², "
        f"autofluorescence {options.autofluorescence:g}; trained on seed {options.seed}, scored on seed {options.seed + 1}; base {options.base.name}, "
        f"{options.epochs} epochs, crops of {options.crop_wpx}. found: share of the true cells matched one to one at IoU >= {IOU:g}."
    )
    print(f"{machine()}; {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
