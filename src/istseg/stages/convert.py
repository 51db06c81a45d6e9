"""convert: a raw folder, read once as a stream → SpatialData, `sample.json`, `vendor_cells.parquet`, `vendor_planes.parquet`."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from istseg.artifacts import cells as cells_io
from istseg.artifacts import planes as planes_io
from istseg.artifacts import spatial
from istseg.artifacts.files import sha256, whole
from istseg.artifacts.sample import Sample, Stain
from istseg.errors import InputError
from istseg.progress import track
from istseg.raw import open_raw
from istseg.raw.agreement import density_evidence
from istseg.raw.base import Facts, RawSample, options_of
from istseg.raw.intensity import Histograms
from istseg.raw.points import PointsWriter
from istseg.samplesheet import NAME_PATTERN, NAME_RULE

MAX_INVALID = 0.001
"""Share of transcripts without coordinates or gene above which the table is refused."""
MIN_INSIDE = 0.05
WARN_INSIDE = 0.8
_THUMBNAIL_PX = 1024
_RECORD, _CELLS, _PLANES = "sample.json", "vendor_cells.parquet", "vendor_planes.parquet"

log = logging.getLogger("istseg")


def run(
    *,
    raw: Path,
    sample: str,
    platform: str,
    out: Path,
    nucleus_stain: str | None = None,
    membrane_stains: str | None = None,
    z_planes: str = "focus",
    fovs: str | None = None,
    pixel_size_um: float | None = None,
) -> None:
    """Convert one sample.

    Parameters
    ----------
    raw
        Raw folder.
    sample
        Name of the sample; names `<sample>.zarr`.
    platform
        Key of `istseg.raw.READERS`.
    out
        Gets `<sample>.zarr`, `sample.json` and, when there are vendor cells, `vendor_cells.parquet` and
        `vendor_planes.parquet` (without rows where the cells do not differ by plane).
    nucleus_stain, membrane_stains, z_planes, fovs, pixel_size_um
        See `istseg.raw.base.Options`.

    Raises
    ------
    InputError
        With all problems of the folder that headers show, or the first one that its contents show.
    """
    if not re.fullmatch(NAME_PATTERN, sample):
        raise InputError(f"--sample: the sample name {sample!r} is not allowed; {NAME_RULE}")
    options = options_of(nucleus_stain=nucleus_stain, membrane_stains=membrane_stains, z_planes=z_planes, fovs=fovs, pixel_size_um=pixel_size_um)
    reader = open_raw(platform, raw, options)
    facts = reader.inspect()
    planes = reader.choose_planes()
    out.mkdir(parents=True, exist_ok=True)
    with whole(out / f"{sample}.zarr") as store:
        store.mkdir()
        scratch = store / ".scratch"
        scratch.mkdir()
        histograms, thumbnail = _write_image(reader, facts, store, scratch)
        if not histograms.n_pixels:
            raise InputError(f"{raw}: all images are empty (0 everywhere). Was the export finished?")
        points = _write_points(reader, facts, store, scratch, thumbnail.shape[1:])
        ids, polygons, left_out = _vendor_cells(reader, facts)
        if ids:
            spatial.write_shapes(store, ids, polygons)
            known = set(ids)
            differ = planes_io.write(scratch / _PLANES, (outline for outline in reader.vendor_planes() if outline[0] in known), scratch)
            facts.details["vendor_cells_differ_by_plane"] = differ
        spatial.finish(store, ["images", "points", *(["shapes"] if ids else [])])
        record = _record(sample, platform, facts, planes, histograms, points, thumbnail, len(ids), left_out, raw)
        # An earlier result is whole until now. Its sample.json goes first and the new one comes last: neither lies beside a store that it does not describe.
        for stale in (_RECORD, _CELLS, _PLANES):
            (out / stale).unlink(missing_ok=True)
        if ids:
            os.replace(scratch / _PLANES, out / _PLANES)
        scratch.rmdir()
    if ids:
        cells_io.write(out / _CELLS, cells_io.frame(ids, polygons))
    record.write(out / _RECORD)
    for warning in record.details["warnings"]:
        log.warning("%s: %s", sample, warning)


def _write_image(reader: RawSample, facts: Facts, store: Path, scratch: Path) -> tuple[Histograms, np.ndarray]:
    """Stream the image; give histograms and a thumbnail (c, y, x)."""
    n, height, width = facts.shape
    # Pieces of a strip are worked on by threads of ours; OpenCV's within each of them cost half as much again.
    cv2.setNumThreads(1)
    histograms = Histograms(n)
    writer = spatial.ImageWriter(store, [c.name for c in facts.channels], height, width, np.linalg.inv(facts.micron_to_pixel))
    strips = -(-height // spatial.CHUNK)
    for strip in track(reader.strips(spatial.CHUNK, scratch), "Image strips", strips):
        values = strip.astype(np.uint16, copy=False)
        counting = histograms.start(values, writer.threads)
        writer.write(values)
        histograms.finish(counting)
    writer.close()
    level = next((i for i in range(spatial.n_levels(store)) if max(height, width) >> i <= _THUMBNAIL_PX), spatial.n_levels(store) - 1)
    return histograms, spatial.image_level(store, level)[:]


def _write_points(reader: RawSample, facts: Facts, store: Path, scratch: Path, thumbnail_shape: tuple[int, int]) -> PointsWriter:
    parts = spatial.write_points_metadata(store)
    bin_px = 1 << round(np.log2(max(1.0, facts.height_px / max(thumbnail_shape[0], 1))))
    writer = PointsWriter(parts, scratch, facts.micron_to_pixel, (facts.height_px, facts.width_px), facts.pixel_size_um, bin_px)
    for table in track(reader.transcripts(), "Blocks of transcripts"):
        try:
            writer.add(table)
        except InputError as error:
            raise InputError([f"{facts.tables[0]}: {text}" for text in error.problems]) from None
    writer.names = writer.close()
    invalid, total = writer.counts["invalid"], writer.counts["total"]
    if invalid > MAX_INVALID * (invalid + total):
        first = f"the first is row {writer.first_invalid + 1} after the header"
        raise InputError(f"{facts.tables[0]}: {invalid} of {invalid + total} rows have no usable coordinates or no gene ({first}). Export it again.")
    if invalid:
        facts.warnings.append(f"{invalid} transcripts without usable coordinates or gene were left out (first: row {writer.first_invalid + 1}).")
    inside = 1 - writer.counts["outside_image"] / total if total else 1.0
    if not total:
        facts.warnings.append("There are no transcripts: all counts will be zero.")
    if inside < MIN_INSIDE:
        raise InputError(f"{facts.tables[0]}: only {inside:.1%} of the transcripts lie inside the image. The transform and the table do not belong together.")
    if inside < WARN_INSIDE:
        facts.warnings.append(f"Only {inside:.0%} of the transcripts lie inside the image; the others are kept and counted as outside.")
    return writer


def _vendor_cells(reader: RawSample, facts: Facts) -> tuple[list[str], list[Any], dict[str, int]]:
    planes = facts.channels[0].planes
    ids, polygons, left_out = reader.vendor_cells(planes[len(planes) // 2] if planes else None)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), ids[i]))
    return [ids[i] for i in order], [polygons[i] for i in order], left_out


def _record(
    sample: str,
    platform: str,
    facts: Facts,
    planes: dict[str, Any],
    histograms: Histograms,
    points: PointsWriter,
    thumbnail: np.ndarray,
    n_cells: int,
    left_out: dict[str, int],
    raw: Path,
) -> Sample:
    stains = []
    for i, channel in enumerate(facts.channels):
        stains.append(Stain(channel.name, channel.role, **histograms.summary(i, int(np.iinfo(channel.dtype).max))))
        if stains[-1].high <= stains[-1].low:
            facts.warnings.append(f"Stain {channel.name} is flat (1st percentile = 99th percentile = {stains[-1].low:g}): it carries no information.")
    evidence = density_evidence(thumbnail, points.density)
    if evidence.get("suspicious"):
        facts.warnings.append(
            f"Transcripts fit the image better when it is flipped ({evidence['best']}, correlation {evidence['correlation'][evidence['best']]:.2f} "
            f"against {evidence['correlation']['none']:.2f}): check the orientation in the report's overview."
        )
    genes, controls = points.names
    return Sample(
        sample=sample,
        platform=platform,
        micron_to_pixel=facts.micron_to_pixel.tolist(),
        pixel_size_um=facts.pixel_size_um,
        height_px=facts.height_px,
        width_px=facts.width_px,
        stains=stains,
        genes=genes,
        controls=controls,
        transcripts={**points.counts, "by_plane": points.by_plane},
        transcript_bands_um=points.bands,
        n_vendor_cells=n_cells,
        details={
            **facts.details,
            "generation": facts.generation,
            "planes": planes,
            "imaged_fraction": histograms.n_pixels / (facts.height_px * facts.width_px),
            "vendor_cells": {"from": facts.cells_from, "changed": left_out},
            "density_evidence": evidence,
            "warnings": facts.warnings,
        },
        checksums={_relative(path, raw): sha256(path) for path in facts.tables},
    )


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name
