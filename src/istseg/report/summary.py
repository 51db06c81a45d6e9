"""From the artifacts to `report.json`: every number that the HTML shows, and nothing that it does not."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from istseg import __version__
from istseg.artifacts.metrics import Metrics
from istseg.artifacts.run import Run
from istseg.report import checks
from istseg.report.collect import MAIN, Collection, Found, Training

FORMAT = 1
_DRIVERS, _SMALL_DRIVER = 3, 0.05
"""So many stages at most are named as what costs, and none with a smaller share."""

STAGES = {
    "preflight": "Preflight names the file and what to do: correct the samplesheet or the raw folder.",
    "convert": "The raw folder could not be read whole: look at the log of `convert` of this sample and correct the folder.",
    "tile": "The sample was converted but not cut into tiles: look at the log of `tile`; where no tissue was found, lower `tissue_transcripts`.",
    "teach": "The teacher did not end on some tile: look at the log of `teach`; check its weights, and GPU and memory.",
    "calibrate": "There are no thresholds: look at the logs of `teach` and `calibrate`; check the nucleus stain where no nuclei were found.",
    "curate": "The teacher's labels were not curated: look at the log of `curate`.",
    "train": "Fine-tuning did not end: look at the log of `train`; with too few patches use `finetune` none or cohort.",
    "segment": "The network did not end on some tile: look at the log of `segment`; where the GPU ran out of memory, lower `segment_batch_size`.",
    "merge": "There are no merged cells: look at the logs of `segment` and `merge`; where the GPU ran out of memory, lower `segment_batch_size`.",
    "assign": "Transcripts were not given to cells: look at the log of `assign`.",
    "assess": "Cells were merged but not assessed: look at the logs of `assign` and `assess`.",
    "coexpression": "The segmentation is complete, but genes got no colours: look at the log of `coexpression`, or use `coexpression` false.",
    "regions": "The segmentation is complete, but the report's close look was not drawn: look at the log of `regions`.",
    "compare": "The segmentations were assessed but not compared: look at the log of `compare`.",
    "export": "The segmentation is complete but was not exported: look at the log of `export`.",
}
"""What to do when a sample got no further than a stage."""


def summarise(collection: Collection, definitions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`report.json` as a dictionary of plain JSON values.

    Returns
    -------
    `format`, `istseg`, `run`, `verdict` (`verdict`, `n_samples`, `n_pass`, `n_look`, `n_fail`), `checks` (definitions),
    `samples`, `models`, `costs`, `images`, `trainings`, `foreign`.
    """
    samples = [_sample(f, collection, definitions) for f in collection.samples]
    verdicts = [s["verdict"] for s in samples]
    return {
        "format": FORMAT,
        "istseg": __version__,
        "run": asdict(collection.run),
        "verdict": {
            "verdict": checks.worst(verdicts) if verdicts else checks.FAIL,
            "n_samples": len(samples),
            **{f"n_{v}": verdicts.count(v) for v in (checks.PASS, checks.LOOK, checks.FAIL)},
        },
        "checks": definitions,
        "samples": samples,
        "models": _models(collection.samples),
        "costs": _costs(collection.run),
        "images": _images(collection.run),
        "trainings": [_training(t) for t in collection.trainings],
        "foreign": collection.foreign,
    }


def derive(found: Found) -> dict[str, Any]:
    """Figures of a sample that no stage writes; None where something they need is missing.

    Returns
    -------
    `area_um2`, `tissue_um2` (µm²), `fraction_in_image`, `transcripts_per_um2`, `control_rate`, `tiles_skipped_fraction`, `cells_vs_teacher`, `cut_fraction`.
    """
    sample, tiles = found.sample, found.tiles
    result: dict[str, Any] = dict.fromkeys(
        ("area_um2", "tissue_um2", "fraction_in_image", "transcripts_per_um2", "control_rate", "tiles_skipped_fraction", "cells_vs_teacher", "cut_fraction")
    )
    if sample:
        result["area_um2"] = sample.height_px * sample.width_px * sample.pixel_size_um**2
        counts = sample.transcripts
        result["fraction_in_image"] = _ratio(counts["total"] - counts.get("outside_image", 0), counts["total"])
        if sample.controls:
            result["control_rate"] = _ratio(counts["controls"], counts["total"])
    if tiles:
        result["tiles_skipped_fraction"] = _ratio(len(tiles.skipped), len(tiles.skipped) + len(tiles.tiles))
    if sample and tiles:
        result["tissue_um2"] = result["area_um2"] * tiles.tissue_fraction
    main = found.assessed.get(MAIN)
    if main:
        counts = main.metrics.transcripts
        result["fraction_in_image"] = _ratio(counts["in_image"], counts["total"])
        result["transcripts_per_um2"] = _ratio(counts["in_image"], result["tissue_um2"])
        if "teacher" in found.assessed:
            result["cells_vs_teacher"] = _ratio(main.metrics.n_cells, found.assessed["teacher"].metrics.n_cells)
        cut = (found.merge or {}).get("n_cut")
        result["cut_fraction"] = None if cut is None else _ratio(cut, main.metrics.n_cells)
    return result


def reached(found: Found) -> str | None:
    """The stage at which a sample stopped, or None when it has metrics for our segmentation."""
    if MAIN in found.assessed:
        return None
    for stage, artifact in (("convert", found.sample), ("tile", found.tiles), ("calibrate", found.thresholds), ("merge", found.merge)):
        if artifact is None:
            return stage
    return "assess"


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _sample(found: Found, collection: Collection, definitions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    derived = derive(found)
    failure = _failure(found, collection)
    segmented = MAIN in found.assessed
    results = checks.check(found, derived, definitions) if segmented else []
    comparators = _failed_comparators(found, collection)
    return {
        "sample": found.name,
        "platform": found.sample.platform if found.sample else found.platform,
        "path": found.path,
        "verdict": checks.FAIL if failure else checks.worst([r["verdict"] for r in results] + [checks.LOOK] * bool(comparators)),
        "segmented": segmented,
        "failure": failure,
        "failed_comparators": comparators,
        "checks": results,
        "derived": derived,
        "input": _input(found),
        "tiles": _tiles(found),
        "thresholds": asdict(found.thresholds) if found.thresholds else None,
        "curation": _curation(found),
        "merge": found.merge,
        "preflight": found.preflight,
        "segmentations": {name: _segmentation(found.assessed[name].metrics) for name in found.segmentations},
        "regions": _regions(found),
        "comparison": asdict(replace(found.comparison, maps={})) if found.comparison else None,
        "trainings": [i for i, t in enumerate(collection.trainings) if found.name in t.samples],
        "warnings": _warnings(found),
    }


def _models(samples: list[Found]) -> list[dict[str, Any]]:
    """Weights that segmented, each with its samples: `{"name", "sha256", "samples"}`."""
    used: dict[tuple[str, str], list[str]] = {}
    for found in samples:
        method = (found.merge or {}).get("segmentations", {}).get(MAIN, {}).get("method", {})
        if method.get("model"):
            used.setdefault((method["model"], method.get("model_sha256") or ""), []).append(found.name)
    return [{"name": name, "sha256": sha256, "samples": names} for (name, sha256), names in used.items()]


def _costs(run: Run) -> dict[str, dict[str, Any]]:
    """Of `cpu_hours`, `gpu_hours` and `memory_gb_hours`, those that are used: `total`, and `drivers`: the stages that took most of it with their `share`."""
    costs = {}
    for key in ("cpu_hours", "gpu_hours", "memory_gb_hours"):
        hours = {r["stage"]: r.get(key) or 0.0 for r in run.resources}
        total = sum(hours.values())
        largest = sorted(hours, key=lambda stage: -hours[stage])[:_DRIVERS]
        if total:
            costs[key] = {"total": total, "drivers": [{"stage": s, "share": hours[s] / total} for s in largest if hours[s] / total >= _SMALL_DRIVER]}
    return costs


def _images(run: Run) -> list[dict[str, Any]]:
    """Container images with the stages that ran in them: `{"image", "digest", "stages"}`; `digest` None where the name holds none."""
    stages: dict[str, list[str]] = {}
    for resource in run.resources:
        for name in resource.get("containers", []):
            stages.setdefault(name, []).append(resource["stage"])
    parts = {name: name.partition("@") for name in sorted(stages)}
    return [{"image": image, "digest": digest or None, "stages": stages[name]} for name, (image, _, digest) in parts.items()]


def _regions(found: Found) -> list[dict[str, Any]]:
    """What the viewer shows, without pictures and outlines."""
    if found.regions is None:
        return []
    regions, _ = found.regions
    side_um = regions.side_px * regions.um_per_px
    return [
        {
            "reason": region.reason,
            "corner_um": list(region.corner_um),
            "side_um": side_um,
            "layers": [layer["name"] for layer in region.layers],
            "outlines": {o["name"]: len(set(o["ids"])) for o in region.outlines},
        }
        for region in regions.regions
    ]


def _failure(found: Found, collection: Collection) -> dict[str, Any] | None:
    """Where the sample stopped, what to do, and what the tasks said; None when all went well.

    The workflow knows better than the files which task ended in error; a task may also fail beside a complete segmentation (export). A segmentation that is
    only compared with does not fail the sample (`_failed_comparators`).
    """
    # A cohort's training and preflight are no sample's own: they concern every sample that got no further.
    names = {found.name} | (set() if MAIN in found.assessed else {"cohort"})
    told = [f for f in collection.run.failures if f.get("sample") in names and f.get("segmentation", MAIN) == MAIN]
    stage = told[0]["stage"] if told else reached(found)
    if stage is None:
        return None
    todo = STAGES.get(stage, f"Look at the log of `{stage}` of this sample.")
    return {"stage": stage, "todo": f"{todo} Then start again with `-resume`.", "messages": [f"{f['stage']}: {f['message']}" for f in told if f.get("message")]}


def _failed_comparators(found: Found, collection: Collection) -> list[dict[str, Any]]:
    """`{"segmentation", "stage", "message"}` of the segmentations beside ours that did not come about, by the first task that failed."""
    failed: dict[str, dict[str, Any]] = {}
    for failure in collection.run.failures:
        name = failure.get("segmentation", MAIN)
        if failure.get("sample") == found.name and name != MAIN:
            failed.setdefault(name, {"segmentation": name, "stage": failure["stage"], "message": failure.get("message", "")})
    return [failed[name] for name in sorted(failed)]


def _input(found: Found) -> dict[str, Any] | None:
    if found.sample is None:
        return None
    sample = found.sample
    return {
        "pixel_size_um": sample.pixel_size_um,
        "height_px": sample.height_px,
        "width_px": sample.width_px,
        "n_genes": len(sample.genes),
        "n_control_probes": len(sample.controls),
        "n_vendor_cells": sample.n_vendor_cells,
        "stains": [asdict(s) for s in sample.stains],
        "transcripts": sample.transcripts,
        "details": {k: v for k, v in sample.details.items() if k != "warnings"},
    }


def _tiles(found: Found) -> dict[str, Any] | None:
    if found.tiles is None:
        return None
    reasons: dict[str, int] = {}
    for tile in found.tiles.skipped:
        reasons[str(tile.get("reason", "no reason given"))] = reasons.get(str(tile.get("reason", "no reason given")), 0) + 1
    return {
        "n_tiles": len(found.tiles.tiles),
        "n_skipped": len(found.tiles.skipped),
        "skipped_by_reason": reasons,
        "tissue_fraction": found.tiles.tissue_fraction,
        "working_um": found.tiles.working_um,
        "windows_per_side": found.tiles.windows_per_side,
        "stains": found.tiles.stains,
    }


def _curation(found: Found) -> dict[str, Any] | None:
    """Sums over tasks: `{"by_layer": {layer: {rule: n}}, "n_tasks"}`."""
    if not found.curation:
        return None
    layers: dict[str, dict[str, int]] = {}
    for record in found.curation:
        for layer, rules in record["by_layer"].items():
            sums = layers.setdefault(layer, {})
            for rule, n in rules.items():
                sums[rule] = sums.get(rule, 0) + n
    return {"n_tasks": len(found.curation), "by_layer": {k: layers[k] for k in sorted(layers)}}


def _segmentation(metrics: Metrics) -> dict[str, Any]:
    """All of `metrics.json` but the coordinates of the embedding and the maps, which are drawn and not shown as numbers."""
    record = asdict(replace(metrics, embedding={}, maps={}))
    del record["embedding"], record["maps"]
    return record | {"n_embedded": len(metrics.embedding.get("x", []))}


def _training(training: Training) -> dict[str, Any]:
    return {"name": training.name, "samples": training.samples, "curves": training.curves, "decision": training.decision}


def _warnings(found: Found) -> list[dict[str, str]]:
    """Sentences of all stages with the stage that wrote them, each once."""
    sources = [
        ("preflight", (found.preflight or {}).get("warnings", [])),
        ("convert", found.sample.details.get("warnings", []) if found.sample else []),
        ("calibrate", found.thresholds.warnings if found.thresholds else []),
        ("merge", (found.merge or {}).get("warnings", [])),
        *((f"assess, {name}", found.assessed[name].metrics.warnings) for name in found.segmentations),
        ("compare", found.comparison.warnings if found.comparison else []),
    ]
    said: dict[str, str] = {}
    for stage, sentences in sources:
        for sentence in sentences:
            said.setdefault(sentence, stage)
    return [{"stage": stage, "text": text} for text, stage in said.items()]
