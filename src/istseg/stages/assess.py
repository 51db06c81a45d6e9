"""Stage `assess`: flags spurious and inconsistent cells and measures a segmentation, whoever made it.

In: the counts and transcripts of `assign`, the cells, the nuclei, the thresholds, the tiles; lists of genes where there are any.
Out: `counts.h5ad` with flags in `obs`, `metrics.json`, `overview.png`, `crops/*.png`. Images are read tile by tile, transcripts once by row group.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from istseg import __version__
from istseg import counts as counts_file
from istseg.artifacts import cells as cells_file
from istseg.artifacts import gene_colours
from istseg.artifacts import markers as marker_lists
from istseg.artifacts.assigned import AssignedTranscripts
from istseg.artifacts.files import read_json
from istseg.artifacts.metrics import FLAGS, Metrics
from istseg.artifacts.sample import Sample, apply_affine
from istseg.artifacts.thresholds import Thresholds
from istseg.artifacts.tiles import TileIndex
from istseg.errors import InputError
from istseg.qc import crops as crop_pictures
from istseg.qc import embedding, flags, maps, measure, overview, profiles, purity, seams, summary
from istseg.qc import nuclei as nucleus_counts

log = logging.getLogger(__name__)


def run(
    sample_json: Path,
    tiles: Path,
    counts: Path,
    cells: Path,
    nuclei: Path,
    thresholds: Path,
    segmentation: str,
    out: Path,
    contain: float = 0.95,
    intersect: float = 0.05,
    umap_cells: int = 20000,
    crops: int = 6,
    merge_json: Path | None = None,
    marker_pairs: Path | None = None,
    markers: Path | None = None,
    colours: Path | None = None,
    seed: int = 0,
) -> None:
    """Assess one segmentation of one sample.

    Parameters
    ----------
    counts
        Folder of `assign`: `counts.h5ad`, `transcripts.parquet`, `assign.json`.
    contain, intersect
        T_contain and T_intersect, shares of a nucleus's area.
    umap_cells
        At most so many cells in the UMAP; 0 for none.
    crops
        Example pictures per flag.
    merge_json
        `merge.json`, which says how the segmentation was made; it does not know the vendor's.
    marker_pairs
        Pairs of genes that exclude each other (`artifacts/markers.py`); without it they are found from the nuclei (`qc.purity.exclusive_pairs`).
    markers
        Markers of cell types; without it marker purity is not measured. Genes of both lists that the sample lacks are left out with a warning.
    colours
        `gene_colours.csv` of `istseg coexpression`: the example pictures show transcripts in them.

    Raises
    ------
    InputError
        If the files are not of one sample and one segmentation, or nothing of a list of genes is in the sample.

    """
    out, tiles, counts = Path(out), Path(tiles), Path(counts)
    sample, index, limits = Sample.read(sample_json), TileIndex.read(tiles / "tiles.json"), Thresholds.read(thresholds)
    assigned = read_json(counts / "assign.json", "the assign.json of the stage assign")
    merged = read_json(merge_json, "the merge.json of the stage merge") if merge_json else {}
    method = {k: v for k, v in merged.get("segmentations", {}).get(segmentation, {}).get("method", {}).items() if not k.endswith("seconds")}
    # The record of the stage merge is of several segmentations; one of this segmentation alone is a comparator's.
    warned = merged.get("warnings", []) if list(merged.get("segmentations", {})) == [segmentation] else []
    cell_table, nucleus_table = cells_file.read(cells), cells_file.read(nuclei)
    adata = _read_counts(counts / "counts.h5ad")
    _check(sample, index, limits, assigned, segmentation, adata, cell_table)
    left_out: list[str] = []
    given_pairs = marker_lists.known_pairs(marker_pairs, sample.genes, left_out) if marker_pairs else None
    marker_table = marker_lists.known_markers(markers, sample.genes, left_out) if markers else None

    shapes, nucleus_shapes = nucleus_counts.valid_polygons(cell_table.geometry), nucleus_counts.valid_polygons(nucleus_table.geometry)
    overlaps = nucleus_counts.count(nucleus_shapes, shapes, contain, intersect)
    centroids = cell_table[["centroid_x_um", "centroid_y_um"]].to_numpy(float)
    flagged = flags.flag(overlaps.contained, overlaps.intersected, adata.obs["n_transcripts"].to_numpy(), limits.spurious_count)
    measured = measure.measure(tiles, index, shapes, centroids, limits.background_density, limits.density_sigma_um)
    for column in (*flagged, *measured):
        adata.obs[column] = (flagged if column in flagged else measured)[column].to_numpy()
    for column in ("qc_reason", "qc_flag"):
        adata.obs[column] = pd.Categorical(flagged[column])

    pixels = apply_affine(sample.affine, centroids)
    in_image = ((pixels >= 0) & (pixels < [sample.width_px, sample.height_px])).all(axis=1)
    areas = cell_table["area_um2"].to_numpy(float)
    border = seams.compare(tiles, index, centroids, areas)
    boxes_wpx = sample.field_boxes_px * (sample.pixel_size_um / index.working_um)
    border["fov"] = seams.compare_fields(tiles, index, boxes_wpx, centroids, areas)
    parts = profiles.gather(AssignedTranscripts(counts / "transcripts.parquet", cell_table["cell_id"], sample.genes), adata.shape, nucleus_shapes)
    whole = (overlaps.contained == 1) & (overlaps.intersected == 1)
    agreement = profiles.halves(parts.half, adata.X, seed) | profiles.nuclear(parts.nuclear, adata.X, whole, centroids)
    pairs = purity.exclusive_pairs(parts.nuclei) if given_pairs is None else given_pairs
    purities = purity.controls(assigned["transcripts"], len(sample.genes), len(sample.controls)) | purity.exclusive(adata.X, pairs)
    purities |= purity.contamination(adata.X, pairs, centroids)
    purities["pairs"] = [[sample.genes[i] for i in pair] for pair in pairs.tolist()]
    if marker_table is not None:
        purities |= purity.markers(adata.X, sample.genes, marker_table)
    embedded = embedding.embed(adata, umap_cells, seed)
    used = {"background_density": limits.background_density, "spurious_count": limits.spurious_count, "contain": contain, "intersect": intersect}
    _annotate(adata, embedded, used, method, {"umap_cells": umap_cells, "seed": seed, "density_sigma_um": limits.density_sigma_um})
    palette = gene_colours.read(colours) if colours else None
    examples = crop_pictures.draw(out / "crops", tiles, index, adata.obs, (shapes, nucleus_shapes), crops, seed, palette)
    picture = overview.draw(out / "overview.png", tiles, index, sample, shapes)
    flag_table, nucleus_record = summary.flag_counts(adata.obs, in_image), summary.nucleus_counts(overlaps.containing_cells, overlaps.intersecting_cells)
    said = summary.warnings(adata.obs, assigned["transcripts"], flag_table, nucleus_record, border, limits.spurious_count)
    counts_file.write(out / "counts.h5ad", adata)
    Metrics(
        sample=sample.sample,
        platform=sample.platform,
        segmentation=segmentation,
        n_cells=adata.n_obs,
        transcripts=assigned["transcripts"],
        nuclei=nucleus_record,
        flags=flag_table,
        reasons={name: int(n) for name, n in adata.obs["qc_reason"].value_counts(sort=False).items()},
        quantiles=summary.quantiles(adata.obs),
        histograms=summary.histograms(adata.obs),
        thresholds=used,
        seams=border,
        purity=purities,
        reproducibility=agreement,
        embedding=_embedding(adata, embedded),
        maps=maps.over_squares(
            pixels * sample.pixel_size_um, sample.size_um, {"flagged": adata.obs["qc_flag"] != "consistent", "transcripts": adata.obs["n_transcripts"]}
        ),
        crops=examples,
        overview=picture,
        method=method,
        warnings=[*said, *left_out, *([embedded.reason] if embedded.reason else []), *warned],
    ).write(out / "metrics.json")
    log.info("%s/%s: %d cells, %s", sample.sample, segmentation, adata.n_obs, ", ".join(f"{flag_table[name]} {name}" for name in FLAGS))


def _read_counts(path: Path) -> anndata.AnnData:
    try:
        return anndata.read_h5ad(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it should be the counts of the stage assign.") from None
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as h5ad ({error}). Was it cut off? Run assign again.") from None


def _check(
    sample: Sample, index: TileIndex, limits: Thresholds, assigned: dict[str, Any], segmentation: str, adata: anndata.AnnData, cells: pd.DataFrame
) -> None:
    """All files speak of one sample and one segmentation, and counts and cells are the same cells in the same order."""
    named = {"tiles.json": index.sample, "thresholds.json": limits.sample, "assign.json": assigned.get("sample")}
    problems = [f"{file} is of the sample {name!r}, sample.json of {sample.sample!r}." for file, name in named.items() if name != sample.sample]
    if assigned.get("segmentation") != segmentation:
        problems.append(f"assign.json is of the segmentation {assigned.get('segmentation')!r}, asked for is {segmentation!r}.")
    if list(adata.obs_names) != cells["cell_id"].tolist():
        problems.append(f"counts.h5ad has {adata.n_obs} cells, the cells file {len(cells)}, and they are not the same; run assign on these cells.")
    if problems:
        raise InputError(problems)


def _annotate(adata: anndata.AnnData, embedded: embedding.Embedding, used: dict[str, float], method: dict[str, Any], params: dict[str, Any]) -> None:
    if len(embedded.rows):
        everywhere = np.full((adata.n_obs, 2), np.nan, np.float32)
        everywhere[embedded.rows] = embedded.xy
        adata.obsm["X_umap"] = everywhere
        cluster = np.full(adata.n_obs, -1)
        cluster[embedded.rows] = embedded.cluster
        adata.obs["leiden"] = pd.Categorical.from_codes(cluster, [str(c) for c in range(embedded.cluster.max() + 1)])
    record = {"version": __version__, "thresholds": used, "params": params, "method": method}
    adata.uns["istseg"] = {**adata.uns["istseg"], **counts_file.h5ad_safe(record)}


def _embedding(adata: anndata.AnnData, embedded: embedding.Embedding) -> dict[str, list[float]]:
    chosen, umap = adata.obs.iloc[embedded.rows], embedded.xy
    return {
        "x": np.round(umap[:, 0].astype(float), 3).tolist(),
        "y": np.round(umap[:, 1].astype(float), 3).tolist(),
        "flag": chosen["qc_flag"].cat.codes.astype(int).tolist(),
        "cluster": embedded.cluster.tolist(),
        "log_counts": np.round(np.log10(chosen["n_transcripts"].to_numpy() + 1.0), 3).tolist(),
    }
