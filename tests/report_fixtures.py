"""Artifacts of a run as the stages write them, made up for the tests of the report: realistic in form and size, seeded."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from istseg.artifacts.comparison import Comparison
from istseg.artifacts.metrics import FLAGS, Metrics
from istseg.artifacts.regions import Region, Regions
from istseg.artifacts.run import Run
from istseg.artifacts.sample import Sample, Stain
from istseg.artifacts.thresholds import Thresholds
from istseg.artifacts.tiles import TileIndex
from istseg.grid import WindowGrid

FLAG_INK = {"consistent": (0, 158, 115), "no_nucleus": (86, 180, 233), "inconsistent": (230, 159, 0), "spurious": (213, 94, 0)}
IMAGES = (f"registry.example/istseg-core@sha256:{'ab' * 32}", "registry.example/istseg-cellpose:0.1.0")
SHARES = {"istseg": (0.74, 0.16, 0.07, 0.03), "teacher": (0.55, 0.2, 0.15, 0.1), "vendor": (0.6, 0.24, 0.11, 0.05)}


def write_run(folder: Path, names: list[str], platforms: tuple[str, ...] = ("merscope", "cosmx"), **more) -> Path:
    run = Run(
        name="mouse_brain_cohort",
        command="nextflow run . -profile slurm --input samplesheet.csv --outdir results -params-file params.yaml",
        started="2026-03-02 09:14",
        nextflow="25.04.6",
        profile="slurm",
        pipeline_version="0.1.0",
        samples=[{"sample": n, "platform": platforms[i % len(platforms)], "path": f"/data/raw/{i:03d}/region_0"} for i, n in enumerate(names)],
        **{
            "params": {
                "input": "samplesheet.csv",
                "outdir": "results",
                "teacher": "cellpose",
                "finetune": "sample",
                "cell_diameter_um": 8.0,
                "working_um": 0.253,
                "z_planes": "focus",
                "umap_cells": 20000,
            },
            "changed": ["teacher", "finetune", "cell_diameter_um"],
            "defaults": {"teacher": "watershed", "finetune": "none", "cell_diameter_um": 6.5},
            "resources": [
                {
                    "stage": stage,
                    "tasks": 3,
                    "seconds": 40.5 * k,
                    "longest_seconds": 20.25 * k,
                    "cpu_hours": 0.0225 * k,
                    "gpu_hours": 0.02 * (stage != "convert"),
                    "memory_gb_hours": 0.1 * k,
                    "peak_memory_bytes": 700_000_000 * k,
                    "containers": [image],
                }
                for k, (stage, image) in enumerate((("convert", IMAGES[0]), ("segment", IMAGES[0]), ("comparator_tiles", IMAGES[1])), 1)
            ],
            "container_engine": "apptainer",
            "versions": {"python": "3.11.2", "torch": "2.15.0", "cellpose": "3.1.1.3", "spatialdata": "0.7.3"},
            **more,
        },
    )
    path = folder / "run.json"
    run.write(path)
    return path


def write_sample(
    folder: Path, name: str, seed: int = 0, platform: str = "merscope", stains: tuple[str, ...] = ("DAPI", "Cellbound1", "PolyT"), **more
) -> Sample:
    rng = np.random.default_rng(seed)
    total = int(rng.integers(2_000_000, 40_000_000))
    controls = total // 220
    by_plane = {str(k): int(v) for k, v in enumerate(np.asarray([0.09, 0.14, 0.18, 0.2, 0.17, 0.13, 0.09]) * total)}
    roles = ["nucleus", "membrane", "other"]
    sample = Sample(
        **{
            "sample": name,
            "platform": platform,
            "micron_to_pixel": [[9.26, 0, 100], [0, 9.26, 100], [0, 0, 1]],
            "pixel_size_um": 0.108,
            "height_px": 42_000,
            "width_px": 51_000,
            "stains": [Stain(s, roles[min(i, 2)], 120 + 30 * i, 4200 - 700 * i, 90, 65535 - 9000 * i, 800, 0.0004 * (i + 1)) for i, s in enumerate(stains)],
            "genes": [f"Gene{i}" for i in range(483)],
            "controls": [f"Blank-{i}" for i in range(50)],
            "transcripts": {"total": total, "genes": total - controls, "controls": controls, "outside_image": total // 900, "by_plane": by_plane},
            "transcript_bands_um": [1000.0, 2000.0],
            "n_vendor_cells": 51_233,
            "details": {
                "generation": "parquet",
                "plane_choice": "focus: plane 3",
                "planes": [0, 1, 2, 3],
                "warnings": ["The stain PolyT exists on planes 0 to 5 only."] if seed % 2 else [],
            },
            **more,
        }
    )
    sample.write(folder / name / "convert" / "sample.json")
    return sample


def write_tiles(folder: Path, sample: Sample, n: int = 40, skipped: int = 9) -> None:
    height, width = int(sample.height_px * 0.427), int(sample.width_px * 0.427)
    grid = WindowGrid(height, width)
    TileIndex(
        sample=sample.sample,
        grid={k: getattr(grid, k) for k in grid.__dataclass_fields__},
        windows_per_side=8,
        working_um=0.253,
        micron_to_working=[[3.95, 0, 40], [0, 3.95, 40], [0, 0, 1]],
        tiles=[{"tile_id": f"t{i}", "core": [0, 0, 9, 9], "region": [0, 0, 9, 9], "n_windows": 60, "n_transcripts": 5000} for i in range(n)],
        skipped=[{"tile_id": f"e{i}", "core": [0, 0, 9, 9], "reason": "no tissue"} for i in range(skipped)],
        tissue_fraction=0.63,
        stains=[
            {
                "name": s.name,
                "focus": {"blur_um": 0.61 + 0.1 * k, "out_of_focus": 0.03 * k, "n_squares": 900},
                "seams": {"step": 0.14, "beside": 0.12, "excess": 0.072, "border_um": 9000.0} if k else None,
            }
            for k, s in enumerate(sample.stains)
            if s.role != "other"
        ],
    ).write(folder / sample.sample / "tile" / "tiles" / "tiles.json")


def write_thresholds(folder: Path, name: str, seed: int = 0) -> Thresholds:
    rng = np.random.default_rng(seed)
    density = rng.gamma(3, 0.4, 60_000)
    counts, edges = np.histogram(density, bins=80, range=(0, 6))
    per_nucleus = np.bincount(rng.negative_binomial(4, 0.1, 20_000))
    thresholds = Thresholds(
        sample=name,
        background_density=float(np.percentile(density, 5)),
        spurious_count=9.0,
        n_nuclei=48_812,
        n_nucleus_pixels=9_800_321,
        best_stain="Cellbound1",
        teacher_cells={"cells_Cellbound1": {"n": 50_123, "one_nucleus": 31_200}},
        percentiles={"background": 5.0, "spurious": 5.0},
        density_histogram={"edges": edges.tolist(), "counts": counts.tolist()},
        count_histogram={"values": list(range(len(per_nucleus))), "counts": per_nucleus.tolist()},
    )
    thresholds.write(folder / name / "calibrate" / "thresholds.json")
    return thresholds


def write_curation(folder: Path, name: str, tasks: int = 3) -> None:
    for task in range(tasks):
        path = folder / name / "curate" / f"part{task}" / "curation.json"
        path.parent.mkdir(parents=True)
        rules = {
            "kept_one_nucleus": 9000,
            "kept_no_nucleus": 2100,
            "stand_in_nuclei": 1200,
            "dropped_several_nuclei": 900,
            "dropped_cut_nucleus": 1500,
            "dropped_background": 420,
        }
        layers = {"cells_Cellbound1": {k: v + task for k, v in rules.items()}, "cells_PolyT": {k: v // 2 for k, v in rules.items()}}
        path.write_text(json.dumps({"sample": name, "tiles": [f"t{task}-{i}" for i in range(4)], "by_layer": layers}))


def write_merge(folder: Path, name: str, **more) -> None:
    path = folder / name / "merge" / "merge.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"sample": name, "n_cells": 51_000, "n_cut": 3, **more}))


def write_metrics(
    folder: Path, name: str, segmentation: str, seed: int = 0, n_cells: int = 51_000, n_umap: int = 20_000, pictures: bool = True, side: int = 1600, **more
) -> Metrics:
    """One segmentation of one sample, with its pictures."""
    rng = np.random.default_rng([seed, len(segmentation)])
    out = folder / name / "assess" / segmentation
    out.mkdir(parents=True)
    scale = {"istseg": 1.0, "teacher": 0.8, "vendor": 0.9}.get(segmentation, 0.7)
    values = {
        "n_transcripts": rng.negative_binomial(3, 0.02 / scale, n_cells).astype(float),
        "n_genes": rng.negative_binomial(6, 0.09 / scale, n_cells).astype(float),
        "area_um2": rng.lognormal(4.4 * scale**0.1, 0.45, n_cells),
    }
    share = np.asarray(SHARES.get(segmentation, (0.5, 0.2, 0.2, 0.1))) * rng.uniform(0.85, 1.15, 4)
    flag = rng.choice(4, n_cells, p=share / share.sum())
    by_flag = {f: int((flag == i).sum()) for i, f in enumerate(FLAGS)}
    rates = {"spurious_rate": "spurious", "inconsistent_rate": "inconsistent", "without_nucleus_rate": "no_nucleus"}
    total, in_image = 12_345_678, 12_301_007
    in_cells = int(in_image * (0.79 * scale)) if n_cells else 0
    m = min(n_umap, n_cells)
    centres = rng.normal(0, 6, (9, 2))
    group = rng.integers(0, 9, m)
    xy = centres[group] + rng.normal(0, 1.1, (m, 2))
    crops = _crops(out, segmentation, rng) if pictures and n_cells else []
    if pictures:
        _overview(out / "overview.png", rng, side)
    fields = {
        "sample": name,
        "platform": "merscope",
        "segmentation": segmentation,
        "n_cells": n_cells,
        "transcripts": {
            "total": total,
            "in_image": in_image,
            "in_cells": in_cells,
            "fraction_in_cells": in_cells / in_image,
            "controls": 55_321,
            "controls_in_cells": 31_007 if n_cells else 0,
            "outside_image": total - in_image,
        },
        "nuclei": {"total": 48_812, "in_one_cell": int(40_001 * scale), "fraction_in_one_cell": int(40_001 * scale) / 48_812, "in_no_cell": 3107},
        "flags": {**by_flag, **{rate: by_flag[f] / n_cells if n_cells else None for rate, f in rates.items()}},
        "reasons": {
            "ok": by_flag["consistent"],
            "no nucleus": by_flag["no_nucleus"],
            "cuts a nucleus": by_flag["inconsistent"] // 3,
            "contains 2+ nuclei": by_flag["inconsistent"] - by_flag["inconsistent"] // 3,
            "no nucleus and < T_spurious transcripts": by_flag["spurious"],
        },
        "quantiles": {k: _quantiles(v) for k, v in values.items()} if n_cells else {},
        "histograms": {k: _histogram(v) for k, v in values.items()} if n_cells else {},
        "thresholds": {"background_density": 0.3, "spurious_count": 9.0},
        "seams": {"n_border": 4102, "n_inside": n_cells - 4102, "density_ratio": 1.013, "area_ratio": 0.991}
        if n_cells
        else {"n_border": 0, "n_inside": 0, "density_ratio": None, "area_ratio": None},
        "purity": {
            "control_enrichment": 0.61 / scale,
            "control_share": 0.003,
            "false_discovery_rate": 0.02,
            "mecr": 0.031 / scale,
            "n_pairs": 84,
            "contamination": 0.012 / scale,
            "foreign_beside": 0.05,
            "foreign_apart": 0.04,
            "pairs": [["Gad1", "Slc17a7"]],
        }
        if n_cells
        else {},
        "reproducibility": {
            "half_cells": n_cells,
            "half_correlation": 0.41 * scale,
            "neighbour_consistency": 0.22 * scale,
            "nuclear_cells": n_cells // 2,
            "nuclear_correlation": 0.38 * scale,
            "nuclear_specificity": 0.11 * scale,
        }
        if n_cells
        else {},
        "embedding": {
            "x": xy[:, 0].round(3).tolist(),
            "y": xy[:, 1].round(3).tolist(),
            "flag": flag[:m].tolist(),
            "cluster": rng.integers(0, 12, m).tolist(),
            "log_counts": np.log1p(values["n_transcripts"][:m]).round(3).tolist(),
        },
        "maps": {
            "square_um": 50.0,
            **{k: rng.integers(low, high, (20, 30)).tolist() for k, low, high in (("cells", 0, 30), ("flagged", 0, 3), ("transcripts", 0, 5000))},
        }
        if n_cells
        else {},
        "crops": crops,
        "overview": {"file": "overview.png", "um_per_px": 4.1} if pictures else None,
        "method": {"model": "istseg-sim-v2"} if segmentation == "istseg" else {},
        "warnings": [],
    }
    metrics = Metrics(**{**fields, **more})
    metrics.write(out / "metrics.json")
    return metrics


def write_comparison(folder: Path, name: str, metrics: dict[str, Metrics], annotated: bool = True, whole: bool = True) -> Comparison:
    """What `compare` says of the segmentations of a sample."""
    names = sorted(metrics)
    agreement = [
        {
            "first": a, "second": b, "n_first": metrics[a].n_cells, "n_second": metrics[b].n_cells, "n_matched": 1000 + k, "matched_first": 0.71 - 0.01 * k,
            "matched_second": 0.66 + 0.02 * k, "mean_iou": 0.72, "ari": 0.58 - 0.03 * k, "ari_assigned": 0.7, "assigned_both": 0.61,
        }
        for k, (a, b) in enumerate(itertools.combinations(names, 2))
    ]  # fmt: skip
    against = {}
    for k, n in enumerate(names if annotated else []):
        against[n] = {"n_annotated": 212, "found": 0.9 - 0.1 * k, "pixel_iou_mean": 0.78 - 0.05 * k, "pixel_iou_median": 0.81, "rna_iou_mean": 0.8 - 0.04 * k,
                      "rna_iou_median": 0.83}  # fmt: skip
        if whole:
            ap = {"0.5": 0.82, "0.6": 0.77, "0.7": 0.6, "0.8": 0.41, "0.9": 0.12}
            against[n]["dense"] = {"n_truth": 200, "n_predicted": 210, "ap": ap, "mean_ap": 0.544, "precision": 0.9, "recall": 0.88 - 0.1 * k, "f1": 0.89,
                                   "panoptic_quality": 0.71, "segmentation_quality": 0.8}  # fmt: skip
    facts = {"n_cells": 212, "region_um2": 250_000.0 if whole else None} if annotated else None
    maps = {other: {"square_um": 500.0, "cells": [[40, 20], [0, 10]], "matched": [[30, 5], [0, 10]]} for other in names if other != "istseg"}
    comparison = Comparison(name, names, agreement, against, maps, facts, {"match_iou": 0.5, "iou_thresholds": [0.5, 0.6, 0.7, 0.8, 0.9]})
    comparison.write(folder / name / "compare" / "comparison.json")
    return comparison


def write_training(folder: Path, name: str, samples: list[str], accepted: bool = True, epochs: int = 20) -> None:
    rng = np.random.default_rng(3)
    path = folder / "train" / name
    path.mkdir(parents=True)
    loss = 0.42 + 0.9 * np.exp(-np.arange(epochs) / 5)
    history = [
        {"epoch": e + 1, "train_loss": float(loss[e]), "validation_loss": float(loss[e] + 0.05 + rng.normal(0, 0.02)), "learning_rate": 1e-3, "seconds": 12.5}
        for e in range(epochs)
    ]
    curves = {"name": name, "samples": samples, "base": "istseg-sim-v2.safetensors", "best_epoch": 17, "validation_loss_before": 1.31, "epochs": history}
    (path / "curves.json").write_text(json.dumps(curves))
    counts = {"true_positives": 1802, "curated_cells": 2121, "predicted_cells": 2933}
    after = (0.702, 0.061, 0.081) if accepted else (0.662, 0.079, 0.122)
    decision = {
        "name": name,
        "samples": samples,
        "accepted": accepted,
        "reason": "fine-tuning is accepted: better ap50, nothing worse" if accepted else "the base is kept: ap50 is not better",
        "base": {"ap50": 0.661, "boundary_iou": 0.412, "spurious_rate": 0.072, "inconsistent_rate": 0.118, **counts},
        "finetuned": {"ap50": after[0], "boundary_iou": 0.431, "spurious_rate": after[1], "inconsistent_rate": after[2], **counts},
        "margin": 0.01,
        "holdout_patches": [f"{samples[0]} w{i}_0" for i in range(62)],
    }
    (path / "decision.json").write_text(json.dumps(decision))


def write_whole(folder: Path, name: str, seed: int = 0, segmentations: tuple[str, ...] = ("istseg", "teacher", "vendor"), **more) -> dict[str, Metrics]:
    """Every artifact of one finished sample."""
    write_tiles(folder, write_sample(folder, name, seed))
    write_thresholds(folder, name, seed)
    write_curation(folder, name)
    write_merge(folder, name)
    write_regions(folder, name, seed, segmentations)
    return {s: write_metrics(folder, name, s, seed, **more) for s in segmentations}


def write_regions(folder: Path, name: str, seed: int = 0, segmentations: tuple[str, ...] = ("istseg", "teacher"), side: int = 160, n: int = 2) -> None:
    """Squares of the viewer, with cells that lie on a grid."""
    rng = np.random.default_rng(seed)
    out = folder / name / "regions"
    out.mkdir(parents=True)
    angle = np.linspace(0, 2 * np.pi, 13)
    places = [(x, y) for y in range(16, side, 32) for x in range(16, side, 32)]

    def rings(radius: float) -> list[str]:
        return [" ".join(f"{x + radius * np.cos(a):.1f},{y + radius * np.sin(a):.1f}" for a in angle) for x, y in places]

    found = Regions(name, side, 0.253)
    for k in range(n):
        layers = []
        for i, (stain, role, colour) in enumerate((("DAPI", "nucleus", "#4073ff"), ("Cellbound1", "membrane", "#00b454"), ("RNA", "rna", "#ff26a6"))):
            file = f"region{k}_{i}.png"
            Image.fromarray(rng.integers(0, 255, (side, side), dtype=np.uint8)).save(out / file)
            layers.append({"name": stain, "role": role, "file": file, "colour": colour})
        ids, flags = [f"{name}_{j:07d}" for j in range(len(places))], rng.integers(0, len(FLAGS), len(places)).tolist()
        cells = [{"name": s, "kind": "cells", "rings": rings(10 + j), "ids": ids, "flags": None if j else flags} for j, s in enumerate(segmentations)]
        nuclei = {"name": "nuclei", "kind": "nuclei", "rings": rings(5), "ids": ids, "flags": None}
        found.regions.append(Region(["typical: like the sample", "most cells"][k % 2], (100.0 * k, 200.0), layers, [nuclei, *cells]))
    found.write(out / "regions.json")


def _quantiles(values: np.ndarray) -> dict[str, float]:
    names = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
    return {**{k: float(np.percentile(values, p)) for k, p in names.items()}, "mean": float(values.mean())}


def _histogram(values: np.ndarray) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, bins=60, range=(0, float(np.percentile(values, 99.5)) + 1e-9))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _overview(path: Path, rng: np.random.Generator, side: int) -> None:
    """A section with nuclei and outlined cells."""
    picture = Image.new("RGB", (side, side * 3 // 4), (4, 6, 10))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((side * 0.08, side * 0.06, side * 0.92, side * 0.7), fill=(14, 34, 40))
    cells = []
    for _ in range(side * 8 // 5):
        angle, radius = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 1))
        x, y, r = side * (0.5 + 0.41 * radius * np.cos(angle)), side * (0.38 + 0.31 * radius * np.sin(angle)), rng.uniform(7, 12)
        cells.append((x, y, r))
        draw.ellipse((x - r * 0.5, y - r * 0.6, x + r * 0.5, y + r * 0.6), fill=(40, 80, int(rng.uniform(140, 255))))
    picture = picture.filter(ImageFilter.GaussianBlur(1.5))
    draw = ImageDraw.Draw(picture)
    for x, y, r in cells:
        draw.ellipse((x - r, y - r * 1.1, x + r, y + r * 1.1), outline=(255, 214, 90))
    picture.save(path)


def _crops(out: Path, segmentation: str, rng: np.random.Generator) -> list[dict[str, str]]:
    (out / "crops").mkdir()
    reasons = {"consistent": "ok", "no_nucleus": "no nucleus", "inconsistent": "contains 2+ nuclei", "spurious": "no nucleus and < T_spurious transcripts"}
    crops = []
    for flag in FLAGS:
        for i in range(6):
            noise = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((192, 192), Image.Resampling.BICUBIC)
            draw = ImageDraw.Draw(picture)
            draw.ellipse((60, 55, 130, 140), outline=FLAG_INK[flag], width=3)
            draw.ellipse((80, 80, 112, 118), fill=(60, 90, 220))
            file = f"crops/{flag}_{i}.png"
            picture.save(out / file)
            crops.append({"file": file, "cell_id": f"{segmentation}-{rng.integers(1e6):06d}", "flag": flag, "reason": reasons[flag]})
    return crops
