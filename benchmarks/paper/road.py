"""From a simulated sample to the measures of every segmentation of it: the stages of the pipeline, called one after the other."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetuning import Sample

from istseg import comparators
from istseg.cli import comparators as commands
from istseg.cli import road as stages
from istseg.stages import comparator
from istseg.teachers.watershed import Sizes

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".istseg" / "comparators"
OURS, TUNED = "istseg", "istseg fine-tuned"
ARGUMENTS = {"proseg": "--nuclear-reassignment-prob 0.2", "comseg": "--cell-diameter-um 7 --seed {seed}", "baysor": "--min-molecules-per-cell 10"}
"""Arguments of foreign programs, as conf/modules.config gives them when they start from nuclei; the paper's mean cell diameter for ComSeg."""
MEASURES = ("pixel_iou", "rna_iou", "ap50", "pq", "spurious", "inconsistent", "transcripts_in_cells")


@dataclass
class Segmentation:
    """Files of one segmentation: polygons, and what says whose a transcript is (label image, table, or neither)."""

    cells: Path
    labels: Path | None = None
    array: str = ""
    assignment: Path | None = None
    transcripts: Path | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


def each_seed(options: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """The options once for each of the seeds that follow each other."""
    for seed in range(options.seed, options.seed + options.seeds):
        yield argparse.Namespace(**{**vars(options), "seed": seed})


def not_run(options: argparse.Namespace) -> dict[str, str]:
    """Methods of the list that cannot run here → why."""
    around = comparators.Surroundings(params={"baysor": options.baysor}, weights=options.weights, programs=PROGRAMS)
    missing = {name: comparators.problems([name], around) for name in options.methods if name in comparators.METHODS}
    missing |= {name: ["not in this version"] for name in options.methods if name not in (*comparators.NAMES, OURS, TUNED)}
    return {name: problems[0] for name, problems in missing.items() if problems}


def measured(sample: Sample, models: dict[str, Path], methods: Sequence[str], options: argparse.Namespace, umap_cells: int = 0) -> dict[str, Segmentation]:
    """Segment by models and methods, assign, assess, compare with the truth.

    Parameters
    ----------
    models
        Name of the segmentation → weights.
    methods
        Of `comparators.NAMES`; those that cannot run here are left out.

    Returns
    -------
    Name → segmentation with its `metrics`: `metrics.json` of assess, and under `truth` what `comparison.json` says of it against the true cells.
    """
    missing = not_run(options)
    found = segmented(sample, models, [name for name in methods if name not in missing], options)
    folder, converted = sample.folder, sample.folder / "convert"
    for name, one in found.items():
        at = folder / "judged" / name.replace(" ", "_")
        stages.assign(
            sample_json=converted / "sample.json", transcripts=points(sample), cells=one.cells, segmentation=one.array or name, out=at,
            labels=one.labels, assignment=one.assignment,
        )  # fmt: skip
        stages.assess(
            sample_json=converted / "sample.json", tiles=folder / "tiles", counts=at, cells=one.cells, nuclei=folder / "merge" / "nuclei.parquet",
            thresholds=folder / "calibrate" / "thresholds.json", segmentation=one.array or name, out=at / "assessed", umap_cells=umap_cells, crops=0,
            seed=options.seed,
        )  # fmt: skip
        one.transcripts = at / "transcripts.parquet"
        one.metrics = json.loads((at / "assessed" / "metrics.json").read_text())
    against = compared(sample, found, folder / "sim" / "truth" / "annotations.geojson", folder / "compare")
    for name, one in found.items():
        one.metrics["truth"] = against[name]
    return found


def compared(sample: Sample, found: dict[str, Segmentation], truth: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Name → what the stage compare says of a segmentation against `truth`."""
    stages.compare(
        sample_json=sample.folder / "convert" / "sample.json", cells=[f"{name}={one.cells}" for name, one in found.items()],
        transcripts=[f"{name}={one.transcripts}" for name, one in found.items()], out=out, annotations=truth,
    )  # fmt: skip
    return json.loads((out / "comparison.json").read_text())["against"]


def figures(one: Segmentation) -> dict[str, float | None]:
    """`MEASURES` of a segmentation."""
    truth, flags = one.metrics["truth"], one.metrics["flags"]
    dense = truth.get("dense", {})
    values = (truth["pixel_iou_mean"], truth["rna_iou_mean"], dense.get("ap", {}).get("0.5"), dense.get("panoptic_quality"))
    return dict(zip(MEASURES, (*values, flags["spurious_rate"], flags["inconsistent_rate"], one.metrics["transcripts"]["fraction_in_cells"]), strict=True))


def points(sample: Sample) -> Path:
    return sample.folder / "convert" / "s.zarr" / "points" / "transcripts" / "points.parquet"


def segmented(sample: Sample, models: dict[str, Path], methods: Sequence[str], options: argparse.Namespace) -> dict[str, Segmentation]:
    """Cells of all models and methods."""
    folder, tiles = sample.folder, [sample.tile.folder]
    stages.teach(tile=tiles, out=folder / "teach")
    stages.calibrate(labels=[folder / "teach"], out=folder / "calibrate")
    found: dict[str, Segmentation] = {}
    for i, (name, model) in enumerate(models.items()):
        stages.segment(tile=tiles, model=model, out=folder / f"segment{i}", device=options.device)
        at = folder / (f"merge{i}" if i else "merge")
        stages.merge(
            tiles_json=folder / "tiles" / "tiles.json", cells=folder / f"segment{i}", teacher=folder / "teach",
            thresholds=folder / "calibrate" / "thresholds.json", out=at,
        )  # fmt: skip
        found[name] = Segmentation(at / "istseg.cells.parquet", at / "labels.zarr", "istseg")
    for name in methods:
        if name == "teacher":
            found[name] = Segmentation(folder / "merge" / "teacher.cells.parquet", folder / "merge" / "labels.zarr")
        elif name == "vendor":
            found[name] = Segmentation(folder / "convert" / "vendor_cells.parquet")
        elif comparators.METHODS[name].kind == comparators.TILE:
            found[name] = tile_wise(sample, name, options)
        else:
            found[name] = program(sample, name, options)
    return found


def tile_wise(sample: Sample, name: str, options: argparse.Namespace) -> Segmentation:
    out = sample.folder / name
    # Cellpose is told how large cells are; the others find out.
    sizes = Sizes(cell_diameter_um=options.cellpose_diameter_um)
    settings = comparators.Settings(teacher_labels=sample.folder / "teach", weights=options.weights, device=options.device, sizes=sizes)
    comparator.tiles(method=name, tiles=[sample.tile.folder], out=out / "tiles", settings=settings, density_sigma_um=1.08, contain=0.95, intersect=0.05)
    commands.comparator_merge(segmentation=name, tiles_json=sample.folder / "tiles" / "tiles.json", labels=out / "tiles", out=out)
    return Segmentation(out / f"{name}.cells.parquet", out / f"{name}.labels.zarr")


def program(sample: Sample, name: str, options: argparse.Namespace) -> Segmentation:
    """A foreign program, started by the script of its Nextflow module."""
    folder, out = sample.folder, sample.folder / name
    converted = {"sample_json": folder / "convert" / "sample.json", "transcripts": points(sample)}
    merged = {"nuclei": folder / "merge" / "nuclei.parquet", "labels": folder / "merge" / "labels.zarr"}
    commands.comparator_prepare(method=name, **converted, **merged, out=out / "input" / "prepared")
    path = f"{ROOT / 'bin'}:{PROGRAMS / name / 'bin'}:{os.environ['PATH']}"
    executable = str(Path(options.baysor).resolve()) if name == "baysor" else name
    script = module_script(name, executable, ARGUMENTS[name].format(seed=options.seed))
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=out, env={**os.environ, "PATH": path}, check=True, capture_output=not options.verbose)
    commands.comparator_collect(method=name, **converted, prepared=out / "input" / "prepared", output=out / "output", out=out)
    return Segmentation(out / f"{name}.cells.parquet", assignment=out / f"{name}.assignment.parquet")


def module_script(name: str, executable: str, arguments: str) -> str:
    """The script of `modules/<name>/main.nf` with its variables filled in: what the pipeline runs."""
    text = (ROOT / "modules" / name / "main.nf").read_text()
    script = re.search(r'script:\s*(?:def [^\n]*\s*)*"""(.*?)"""', text, re.DOTALL)
    if not script:
        raise ValueError(f"modules/{name}/main.nf has no script between triple quotes")
    filled = script[1]
    for variable, value in (("task.cpus", "1"), ("task.ext.args ?: ''", arguments), ("prepared", "input/prepared"), ("program", shlex.quote(executable))):
        filled = filled.replace(f"${{{variable}}}", value)
    if "${" in filled:
        raise ValueError(f"modules/{name}/main.nf uses variables that this benchmark does not know: {filled}")
    return filled


def consistency(sample: Sample, found: dict[str, Segmentation], clean: dict[str, Segmentation]) -> dict[str, dict[str, Any]]:
    """Name → each segmentation against the same method's cells of the clean sample [paper: Benchmark on simulated datasets]."""
    result = {}
    for name, one in found.items():
        at = sample.folder / "consistency" / name.replace(" ", "_")
        result[name] = compared(sample, {name: one}, clean[name].cells, at)[name]
    return result
