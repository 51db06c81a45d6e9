"""preflight: check samplesheet, parameters, raw folders and machine before any work; all problems at once, in seconds."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from istseg import comparators, parameters, samplesheet
from istseg.artifacts import annotations as annotations_file
from istseg.artifacts import markers as marker_lists
from istseg.artifacts.annotations import Frame
from istseg.artifacts.preflight import Preflight, Resolved
from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError, as_written
from istseg.grid import DEFAULT_OVERLAP_UM, DEFAULT_TILE_UM, DEFAULT_WORKING_UM
from istseg.progress import track
from istseg.raw import open_raw, tables
from istseg.raw.agreement import local_evidence
from istseg.raw.base import Facts, Options, RawSample
from istseg.raw.points import MAX_MICRON, gene_problem
from istseg.report.checks import limits as report_limits
from istseg.stages import compare
from istseg.stages.convert import MAX_INVALID, MIN_INSIDE, WARN_INSIDE
from istseg.workload import GZIP_GROWTH, workload

_WARN_REPEATED = 0.01
_PYRAMID = 4 / 3
_COMPRESSED = 0.8
"""Microscope images shrink little; a cautious value for the estimate."""
_TILING = {"working_um": DEFAULT_WORKING_UM, "tile_um": DEFAULT_TILE_UM, "overlap_um": DEFAULT_OVERLAP_UM}
_WORKING_BYTES = 24
"""Per working pixel beside the stains: labels, fields, crops of tiles that overlap."""
_COMPARED = {comparators.TILE: (3, 40), comparators.PROGRAM: (1, 160)}
"""Bytes of a comparator per working pixel (labels of tiles that overlap, label image, outlines) and per transcript (its cell, counts; a program's own tables
too). Measured on 0.76 Mpx and 41,000 transcripts: 1.8 (2.8 with a layer for each stain; outlines had twice as many points as now) and 31; a program is given
39 per transcript, and what it writes is taken for twice that.
"""
_PICTURES = 10_000_000
"""Overview and crops of a segmentation."""
_COPIES = 2
"""Work folder and published results."""

log = logging.getLogger("istseg")


def run(
    *,
    samplesheet: Path,
    out: Path,
    raw: dict[str, Path] | None = None,
    annotations: dict[str, Path] | None = None,
    params: Path | None = None,
    schema: Path | None = None,
    device: str = "cpu",
    disk: Path | None = None,
    model: Path | None = None,
    nuclei_weights: Path | None = None,
    cyto_weights: Path | None = None,
    genesegnet_weights: Path | None = None,
    limits: Path | None = None,
    programs: Path | None = None,
    marker_pairs: Path | None = None,
    markers: Path | None = None,
) -> None:
    """Check everything and write `preflight.json`.

    Parameters
    ----------
    samplesheet
        CSV with one row per sample.
    out
        Folder that gets `preflight.json`.
    raw
        Sample → where its raw folder is staged.
    annotations
        Sample → where its annotated cells are staged.
    params, schema
        Parameters of the run as JSON, and `nextflow_schema.json`.
    device
        `cpu` or `cuda`.
    disk
        Folder whose free space must hold the results.
    model, nuclei_weights, cyto_weights, genesegnet_weights
        Where the base model, the weights of `cellpose`, as teacher or comparator, and those of the comparator `genesegnet` are staged; checked with the
        digests and the working resolution of `params`.
    limits
        Where the limits of the report's checks (`qc_thresholds`) are staged.
    programs
        Folder of the comparators' programs; None where each has its container.
    marker_pairs, markers
        Where the lists of genes are staged; whether the samples have these genes is known only after `convert`.

    Raises
    ------
    InputError
        With every problem of everything.
    """
    problems: list[str] = []
    if params is not None and schema is None:
        problems.append("--params needs --schema (nextflow_schema.json) to be checked against.")
    values = parameters.check_files(params, schema, problems) if params and schema else {}
    rows = read_rows(samplesheet, raw or {}, problems)
    gpu = _check_device(device, problems)
    _check_model(model, values, problems)
    weights = {"nuclei": nuclei_weights, "cyto": cyto_weights}
    _check_cellpose(weights, values, problems)
    _check_comparators(weights | {"genesegnet": genesegnet_weights}, programs, values, problems)
    _check_iou_thresholds(values, problems)
    _check_file(limits, "qc_thresholds", report_limits, values, problems)
    _check_file(marker_pairs, "marker_pairs", marker_lists.read_pairs, values, problems)
    _check_file(markers, "markers", marker_lists.read_markers, values, problems)
    samples = []
    for row in track(rows, "Samples"):
        staged = {"path": (raw or {}).get(row.sample), "annotations": (annotations or {}).get(row.sample)}
        resolved = _check_sample(row, samplesheet, staged, values, problems)
        if resolved:
            samples.append(resolved)
    needed = _COPIES * sum(s.disk_bytes for s in samples)
    free = _check_disk(disk, needed, problems)
    if problems:
        raise InputError(problems)
    for sample in samples:
        for warning in sample.warnings:
            log.warning("%s: %s", sample.sample, warning)
    machine = {"device": device, "gpu": gpu, "disk_free_bytes": free, "disk_needed_bytes": needed}
    Preflight(samples, machine).write(out / "preflight.json")


def read_rows(sheet: Path, raw: dict[str, Path], problems: list[str]) -> list[samplesheet.Row]:
    """Rows of the samplesheet; staged folders of samples that it lacks are problems."""
    found = len(problems)
    rows = samplesheet.read(sheet, problems)
    if len(problems) == found:
        problems += [f"--raw {name}={path}: the samplesheet has no sample {name!r}." for name, path in raw.items() if name not in {r.sample for r in rows}]
    return rows


def _check_sample(row: samplesheet.Row, sheet: Path, staged: dict[str, Path | None], values: dict[str, Any], problems: list[str]) -> Resolved | None:
    """`staged`: where what the columns `path` and `annotations` name is staged; None: where they say."""
    folder = staged["path"] or sheet.parent / row.path
    found: list[str] = []
    given = {name: getattr(row, name) or values.get(name) for name in samplesheet.RAW_OPTIONS}
    if row.platform != "cosmx":
        given["fovs"] = given["pixel_size_um"] = None
    try:
        reader = open_raw(row.platform, folder, Options.parse(found, **given))
        facts = reader.inspect()
        table = reader.transcript_sample()
        transcripts = _check_transcripts(table, facts, found)
        if not found:
            _check_orientation(reader, table, folder, values, found)
        if values.get("teacher") == "vendor" and facts.cells_from is None:
            found.append(f"{folder}: the teacher `vendor` needs the vendor's cells, and there are none. Choose another teacher.")
        _check_vendor_cells(folder, facts, values, found)
        annotated = _check_annotations(row, staged["annotations"] or sheet.parent / (row.annotations or ""), facts, values, found)
        size = workload(facts, **{name: float(values.get(name) or default) for name, default in _TILING.items()})
    except InputError as error:
        found += error.problems
    except OSError as error:
        found.append(f"{error.filename or folder}: cannot be read ({error.strerror or error}).")
    if found:
        problems += [f"{row.sample}: {as_written(text, folder, row.path if staged['path'] else None)}" for text in dict.fromkeys(found)]
        return None
    return Resolved(
        sample=row.sample,
        platform=row.platform,
        path=row.path,
        generation=facts.generation,
        stains=[asdict(c) for c in facts.channels],
        planes=facts.planes,
        height_px=facts.height_px,
        width_px=facts.width_px,
        pixel_size_um=facts.pixel_size_um,
        micron_to_pixel=facts.micron_to_pixel.tolist(),
        transcripts=transcripts,
        evidence={"transcripts_inside": transcripts["inside_fraction"], **facts.details},
        vendor_cells=facts.cells_from,
        disk_bytes=estimate_disk(facts, float(values.get("working_um") or DEFAULT_WORKING_UM), size["mtx"] * 1e6, _comparators(values)),
        warnings=facts.warnings,
        annotations=annotated,
        size={name: round(value, 4) for name, value in size.items()},
    )


def _check_annotations(row: samplesheet.Row, path: Path, facts: Facts, values: dict[str, Any], problems: list[str]) -> dict[str, Any] | None:
    """The annotated cells can be read and lie on the image; how many there are. None without."""
    if row.annotations is None:
        return None
    frame = Frame(facts.micron_to_pixel, facts.height_px, facts.width_px, facts.pixel_size_um, float(values.get("working_um") or DEFAULT_WORKING_UM))
    try:
        found = annotations_file.read(path, row.annotations_unit, frame)
    except InputError as error:
        problems += [as_written(text, path, row.annotations) for text in error.problems]
        return None
    facts.warnings += found.warnings
    return {"path": row.annotations, "cells": len(found.ids), "region": found.region is not None}


def _check_vendor_cells(folder: Path, facts: Facts, values: dict[str, Any], problems: list[str]) -> None:
    """Comparators that need the vendor's cells: a segmentation that is not there is a warning, nothing to start from is a problem."""
    asked = comparators.chosen(str(values.get("compare") or comparators.NONE))
    if facts.cells_from is not None:
        return
    if "proseg" in asked and values.get("proseg_init") == "vendor":
        problems.append(f"{folder}: --proseg_init vendor needs the vendor's cells, and there are none. Use --proseg_init nuclei.")
    if "vendor" in asked:
        facts.warnings.append("There are no cells of the vendor to compare with.")


def _check_transcripts(table: pa.Table, facts: Facts, problems: list[str]) -> dict[str, Any]:
    """Look at a sample of the rows; the coordinate gate: transcripts must lie in the image."""
    path = facts.tables[0]
    if not table.num_rows:
        problems.append(f"{path}: has no transcripts. Was the export finished, and do the fovs fit?")
        return {}
    x, y = (pc.fill_null(table[c], np.nan).to_numpy() for c in "xy")
    placed = (np.abs(x) < MAX_MICRON) & (np.abs(y) < MAX_MICRON)
    named = pc.is_valid(table["gene"]).to_numpy()
    good = placed & named
    if (~good).mean() > MAX_INVALID:
        row = int(np.flatnonzero(~good)[0])
        example = {name: table[name][row].as_py() for name in ("x", "y", "gene")}
        problems.append(f"{path}: {(~good).mean():.1%} of {len(good)} rows looked at have no usable coordinates or no gene, e.g. {example}. Export it again.")
        return {}
    inside = _inside(x[good], y[good], facts)
    if inside < MIN_INSIDE:
        pixel = apply_affine(facts.micron_to_pixel, np.column_stack([x[good], y[good]]))
        low, high = np.percentile(pixel, [1, 99], axis=0)
        problems.append(
            f"{path}: only {inside:.1%} of the transcripts lie inside the image: from x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f} px, "
            f"the image has {facts.width_px} x {facts.height_px} px. The transform or positions and the table do not belong together."
        )
    elif inside < WARN_INSIDE:
        facts.warnings.append(f"Only {inside:.0%} of the transcripts looked at lie inside the image.")
    problems += [f"{path}: {wrong}" for gene in pc.unique(table["gene"]).to_pylist() if gene is not None and (wrong := gene_problem(gene))][:3]
    control = table["is_control"].to_numpy()[good]
    if control.all():
        problems.append(f"{path}: every row looked at is a control probe; there are no genes.")
    repeated = _repeated(table)
    if repeated > _WARN_REPEATED:
        facts.warnings.append(f"{repeated:.1%} of the transcripts looked at are there twice (same place, plane and gene): they are counted twice.")
    return {
        "sampled": int(len(good)),
        "genes": int(pc.count_distinct(table["gene"].filter(pc.invert(table["is_control"]))).as_py()),
        "inside_fraction": round(inside, 4),
        "control_fraction": round(float(control.mean()), 4),
        "repeated_fraction": round(repeated, 4),
    }


def _check_orientation(reader: RawSample, table: pa.Table, folder: Path, values: dict[str, Any], problems: list[str]) -> None:
    """Where only densities can tell: transcripts that lie clearly better on the flipped image stop the run. The evidence goes into the record."""
    facts = reader.facts
    if reader.pixels(0, 1, 0, 1) is None:
        return
    x, y = (pc.fill_null(table[c], np.nan).to_numpy() for c in "xy")
    pixel = apply_affine(facts.micron_to_pixel, np.column_stack([x, y])[np.isfinite(x) & np.isfinite(y)])
    evidence = local_evidence(reader.pixels, pixel, (facts.height_px, facts.width_px), facts.pixel_size_um)
    facts.details["orientation"] = {"evidence": "density", **evidence} if evidence else {"evidence": "none"}
    if not evidence.get("suspicious"):
        return
    listing = ", ".join(f"{name} {r:.2f}" for name, r in evidence["correlation"].items())
    text = (
        f"{folder}: transcripts lie clearly better on the image when it is flipped by {evidence['best']} (correlation with the stains in "
        f"{evidence['squares']} squares: {listing})."
    )
    if values.get("check_orientation", True):
        problems.append(f"{text} Image and transcripts do not belong together as they are; export them again, or go on with --check_orientation false.")
    else:
        facts.warnings.append(text)


def _inside(x: np.ndarray, y: np.ndarray, facts: Facts) -> float:
    pixel = apply_affine(facts.micron_to_pixel, np.column_stack([x, y]))
    return float(((pixel >= 0) & (pixel < [facts.width_px, facts.height_px])).all(axis=1).mean())


def _repeated(table: pa.Table) -> float:
    distinct = table.select(["x", "y", "z", "gene"]).group_by(["x", "y", "z", "gene"]).aggregate([]).num_rows
    return 1 - distinct / table.num_rows


def _check_device(device: str, problems: list[str]) -> str | None:
    """Name of the GPU; None on `cpu`."""
    if device == "cpu":
        return None
    if device.partition(":")[0] != "cuda":
        problems.append(f"--device {device}: must be `cpu` or `cuda`.")
        return None
    import torch

    if not torch.cuda.is_available():
        problems.append(f"--device {device}: PyTorch {torch.__version__} sees no GPU here. Ask for a machine with one, or run without --gpu.")
        return None
    return torch.cuda.get_device_name(device)


def _check_model(path: Path | None, values: dict[str, Any], problems: list[str]) -> None:
    """The base model can be read, has the digest asked for and was made for the working resolution."""
    if path is None:
        return
    from istseg.network import weights

    try:
        _, card = weights.load(path, values.get("base_model_sha256"))
        card.check_tile(float(values.get("working_um") or DEFAULT_WORKING_UM), "--working_um")
    except InputError as error:
        problems += [f"--base_model: {as_written(text, path, values.get('base_model'))}" for text in error.problems]


def _check_cellpose(weights: Mapping[str, Path | None], values: dict[str, Any], problems: list[str]) -> None:
    """The teacher's weights can be read and have the digests asked for."""
    if values.get("teacher") == "cellpose":
        from istseg.teachers import cellpose

        problems += cellpose.staged_problems(weights, values)


def _check_comparators(weights: Mapping[str, Path | None], programs: Path | None, values: dict[str, Any], problems: list[str]) -> None:
    """Every comparator that was chosen has what it needs."""
    problems += comparators.problems(_comparators(values), comparators.Surroundings(values, weights, programs))


def _comparators(values: dict[str, Any]) -> list[str]:
    """Names of `compare` that are work of their own: the run's teacher is not computed twice."""
    asked = comparators.chosen(str(values.get("compare") or comparators.NONE))
    return [name for name in asked if name in comparators.METHODS and name != values.get("teacher")]


def _check_iou_thresholds(values: dict[str, Any], problems: list[str]) -> None:
    """The stage that will use them can read them."""
    if values.get("iou_thresholds") is None:
        return
    try:
        compare.thresholds_of(str(values["iou_thresholds"]))
    except InputError as error:
        problems += [f"--iou_thresholds: {text}" for text in error.problems]


def _check_file(path: Path | None, parameter: str, read: Callable[[Path], Any], values: dict[str, Any], problems: list[str]) -> None:
    """A file that a parameter names can be read."""
    if path is None:
        return
    try:
        read(path)
    except InputError as error:
        problems += [f"--{parameter}: {as_written(text, path, values.get(parameter))}" for text in error.problems]


def estimate_disk(facts: Facts, working_um: float, transcripts: float, methods: list[str]) -> int:
    """Bytes that the results of a sample take, roughly: converted image and transcripts, tiles, labels, and what comparators add."""
    channels, height, width = facts.shape
    network = sum(c.role != "other" for c in facts.channels)
    image = channels * height * width * 2 * _PYRAMID * _COMPRESSED
    table = sum(p.stat().st_size * (GZIP_GROWTH if tables.is_gzip(p) else 1) for p in facts.tables)
    working = height * width * (facts.pixel_size_um / working_um) ** 2
    return int(image + 2 * table + working * (2 * 2 * network + _WORKING_BYTES)) + sum(comparator_bytes(name, working, transcripts) for name in methods)


def comparator_bytes(method: str, working_px: float, transcripts: float) -> int:
    """Bytes that a comparator adds, roughly, up to its assessed cells."""
    per_pixel, per_transcript = _COMPARED[comparators.METHODS[method].kind]
    return int(per_pixel * working_px + per_transcript * transcripts) + _PICTURES


def _check_disk(disk: Path | None, needed: int, problems: list[str]) -> int | None:
    if disk is None:
        return None
    try:
        free = shutil.disk_usage(disk).free
    except OSError as error:
        problems.append(f"--disk {disk}: cannot be looked at ({error.strerror}).")
        return None
    if free < needed:
        problems.append(
            f"{disk}: {free / 1e9:.1f} GB are free, about {needed / 1e9:.1f} GB are needed for work folder and results. Make room or choose another folder."
        )
    return free
