"""The methods paragraph: only what the artifacts say, ready to paste."""

from __future__ import annotations

from typing import Any

CITATIONS = {
    "RNA2seg": (
        "Defard T, Blondel A, Bellow S, Coleon A, Dias de Melo G, Mueller F, Walter T. "
        "RNA2seg: a generalist model for cell segmentation in image-based spatial transcriptomics. Genome Biology. 2026. doi:10.1186/s13059-025-03908-9"
    ),
    "Cellpose": "Stringer C, Wang T, Michaelos M, Pachitariu M. Cellpose: a generalist algorithm for cellular segmentation. Nat Methods. 2021;18:100–106.",
    "SpatialData": "Marconato L, et al. SpatialData: an open and universal data framework for spatial omics. Nat Methods. 2024. doi:10.1038/s41592-024-02212-x",
}
_PLATFORMS = {"merscope": "MERSCOPE (Vizgen)", "cosmx": "CosMx SMI (Bruker/NanoString)", "xenium": "Xenium (10x Genomics)"}
_TEACHERS = {
    "cellpose": "Cellpose [2] (model nuclei for nuclei; cyto3 for each membrane stain with the nucleus stain as second channel)",
    "watershed": "a seeded watershed on the nucleus and membrane stains",
    "vendor": "the instrument vendor's own segmentation",
}


def paragraph(report: dict[str, Any]) -> tuple[str, list[str]]:
    """Text and its references, from the contents of `report.json`.

    Returns
    -------
    (text, references); references are numbered as in the text.
    """
    run, params = report["run"], report["run"]["params"]
    done = [s for s in report["samples"] if s["segmented"]]
    references = [CITATIONS["RNA2seg"]]
    if not done:
        return f"No sample of this run was segmented to the end (istseg {run['pipeline_version']}).", references
    platforms = sorted({_PLATFORMS.get(s["platform"], s["platform"]) for s in done})
    parts = [
        f"Raw {' and '.join(platforms)} data of {len(done)} sample{'s' if len(done) > 1 else ''} were segmented with istseg {run['pipeline_version']} "
        f"(Nextflow {run['nextflow']}), which implements the RNA2seg method [1].",
        _images(done),
    ]
    teacher = params.get("teacher")
    if teacher in _TEACHERS:
        parts.append(f"Nuclei and a first set of cells (the teacher) came from {_TEACHERS[teacher]}.")
        if teacher == "cellpose":
            references.append(CITATIONS["Cellpose"])
    parts.append(_thresholds(done))
    parts.append(_training(report, done))
    model = _one(_model(s) for s in done)
    parts.append(
        "Cells were predicted by a convolutional network from the nucleus stain, all membrane stains and an image of the transcripts"
        + (f" (model {model})" if model else "")
        + "; its flow fields were followed to cell masks on one grid of windows over the whole sample, so that the result does not depend on the tiling."
    )
    parts.append(_result(done))
    references.append(CITATIONS["SpatialData"])
    parts.append(f"Images, transcripts and shapes are stored as SpatialData [{len(references)}], counts as AnnData.")
    return " ".join(p for p in parts if p), references


def _model(sample: dict[str, Any]) -> str:
    """Name of the network's weights, from the record of `merge` or of `assess`."""
    merged = ((sample["merge"] or {}).get("segmentations") or {}).get("istseg") or {}
    return str((merged.get("method") or {}).get("model") or sample["segmentations"]["istseg"]["method"].get("model") or "")


def _images(done: list[dict[str, Any]]) -> str:
    sets = sorted({", ".join(s["name"] for s in d["input"]["stains"] if s["role"] != "other") for d in done if d["input"]})
    scale = sorted({f"{d['tiles']['working_um']:.3g}" for d in done if d["tiles"]})
    if not sets or not scale:
        return ""
    return (
        f"Stains ({'; '.join(sets)}) were scaled from the 1st to the 99th percentile of the whole sample, each on its own, "
        f"and segmented at {' or '.join(scale)} µm per pixel."
    )


def _thresholds(done: list[dict[str, Any]]) -> str:
    known = [d["thresholds"] for d in done if d["thresholds"]]
    if not known:
        return ""
    percent = _one(f"{t['percentiles']['background']:g}" for t in known if "background" in t["percentiles"])
    return (
        f"The background threshold of the RNA density was {_range([t['background_density'] for t in known])} transcripts per µm² "
        f"({percent or '5'}th percentile of the density inside nuclei; {_range([t['n_nuclei'] for t in known])} nuclei per sample), "
        f"the threshold for spurious cells {_range([t['spurious_count'] for t in known])} transcripts."
    )


def _training(report: dict[str, Any], done: list[dict[str, Any]]) -> str:
    names = {d["sample"] for d in done}
    decisions = [t["decision"] for t in report["trainings"] if t["decision"] and names & set(t["samples"])]
    if not decisions:
        return ""
    tried = [d for d in decisions if d.get("finetuned")]
    if not tried:
        return "Fine-tuning was not possible with the labels, so the base model was used."
    if not any(d.get("base") for d in tried):
        return "The network was trained from scratch on labels that nuclei and RNA density confirmed [1]."
    accepted = sum(bool(d.get("accepted")) for d in decisions)
    if accepted == len(decisions):
        outcome = "and was accepted on held-out patches"
    elif accepted:
        outcome = f"and was accepted on held-out patches in {accepted} of {len(decisions)} cases; elsewhere the base model was kept"
    else:
        outcome = "but the base model was kept, because the fine-tuned one was not better on held-out patches or made something worse there"
    return f"The base model was fine-tuned on labels that nuclei and RNA density confirmed [1], {outcome}."


def _result(done: list[dict[str, Any]]) -> str:
    metrics = [d["segmentations"]["istseg"] for d in done]
    shares = [m["transcripts"]["fraction_in_cells"] for m in metrics if m["transcripts"].get("fraction_in_cells") is not None]
    text = f"In all, {sum(m['n_cells'] for m in metrics):,} cells were found"
    if shares:
        text += f"; {_range([round(100 * s, 1) for s in shares])} % of the transcripts inside the image lie in cells"
    return (
        text + ". Cells that touch no nucleus and hold fewer transcripts than the threshold were flagged spurious, "
        "cells that cut a nucleus or contain several inconsistent [1]; flags are kept in the count matrix."
    )


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}" if min(values) < 1000 else f"{min(values):,.0f}", f"{max(values):.3g}" if max(values) < 1000 else f"{max(values):,.0f}"
    return low if low == high else f"{low}–{high}"


def _one(values: Any) -> str:
    """The value if all are equal, else none."""
    known = set(values)
    return known.pop() if len(known) == 1 else ""
