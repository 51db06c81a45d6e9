"""Segmentations × measures: rows of the page's tables, `metrics.tsv`, and `istseg_mqc.json` for MultiQC; all from `report.json`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from istseg.artifacts.comparison import AGAINST, ANNOTATED, Comparison
from istseg.artifacts.files import whole
from istseg.artifacts.metrics import MEASURES, Measure

TSV = "metrics.tsv"
MULTIQC = "istseg_mqc.json"
COLUMNS = ("sample", "segmentation", "against", "metric", "value", "unit", "better")
KINDS = {"count": "count", "share": "share", "difference": "share", "um2": "um2", "ratio": "ratio", "correlation": "number", "index": "number"}
"""Unit of a measure → how `numbers.show` writes it."""
BETTER = {"high": "higher is better", "low": "lower is better", "one": "nearer to 1 is better", "": "says nothing about quality alone"}
_SHOWN = {"n_cells", "transcripts_in_cells", "spurious_rate", "inconsistent_rate", "mecr", "contamination", "pixel_iou", "rna_iou", "mean_ap"}
"""Columns that MultiQC shows at first; the others can be switched on there."""
_TABLES_ONLY = {"pixel_iou_median", "rna_iou_median"}
"""Not on the page, as the average precision at single thresholds: they would hide what matters."""


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Tidy rows (`COLUMNS`) of all samples; what was not measured is no row."""
    found = []
    for sample in report["samples"]:
        for name, record in sample["segmentations"].items():
            found += [m.row(record, name) for m in MEASURES if m.value(record) is not None]
        if sample["comparison"]:
            found += Comparison(**sample["comparison"]).rows
        for row in found:
            row.setdefault("sample", sample["sample"])
    return found


def write_tsv(path: Path, report: dict[str, Any]) -> None:
    """Write `metrics.tsv`."""
    with whole(path) as part, open(part, "w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS, delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows(report))


def multiqc(report: dict[str, Any]) -> dict[str, Any]:
    """Custom content of MultiQC: one table with a row for each segmentation of each sample; shares in percent."""
    compared = [Comparison(**s["comparison"]) for s in report["samples"] if s["comparison"]]
    measures = {m.name: m for m in (*MEASURES, *AGAINST, *(m for c in compared for m in c.measures))}
    data: dict[str, dict[str, float]] = {}
    for row in rows(report):
        if row["metric"] in measures and row["against"] in ("", ANNOTATED):
            scale = 100 if KINDS[row["unit"]] == "share" else 1
            data.setdefault(f"{row['sample']}: {row['segmentation']}", {})[row["metric"]] = row["value"] * scale
    used = {name for values in data.values() for name in values}
    return {
        "id": "istseg",
        "section_name": "istseg: cell segmentations",
        "description": "Measures of every segmentation of every sample; what they mean is said in docs/metrics.md of istseg.",
        "plot_type": "table",
        "pconfig": {"id": "istseg_segmentations", "title": "istseg: cell segmentations", "col1_header": "Sample: segmentation"},
        "headers": {name: _header(m) for name, m in measures.items() if name in used},
        "data": data,
    }


def _header(measure: Measure) -> dict[str, Any]:
    percent = KINDS[measure.unit] == "share"
    return {
        "title": measure.title,
        "description": f"{measure.title} ({BETTER[measure.better]})",
        "suffix": "%" if percent else {"um2": " µm²"}.get(measure.unit, ""),
        "format": "{:,.0f}" if measure.unit == "count" else "{:,.1f}" if percent or measure.unit == "um2" else "{:,.3f}",
        **({"min": 0, "max": 100} if measure.unit == "share" else {}),
        "scale": {"high": "RdYlGn", "low": "RdYlGn-rev"}.get(measure.better, "Greys"),
        "hidden": measure.name not in _SHOWN,
    }


def side_by_side(i: int, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Groups of rows of the table of sample `i`: `{"title", "rows"}`, a row `{"title", "kind", "better", "where", "best"}`.

    `where`: segmentation → path of its number in `report.json`; `best`: the segmentations with the best value where one is better than another.
    """
    names = list(record["segmentations"])
    groups = [{"title": "", "rows": [_row(m, {n: (["samples", i, "segmentations", n], record["segmentations"][n]) for n in names}) for m in MEASURES]}]
    comparison = record["comparison"] or {}
    if comparison.get("annotations"):
        against = {n: (["samples", i, "comparison", "against", n], comparison["against"][n]) for n in names if n in comparison["against"]}
        groups.append({"title": ANNOTATED, "rows": [_row(m, against) for m in AGAINST if m.name not in _TABLES_ONLY]})
    return [{**g, "rows": known} for g in groups if (known := [r for r in g["rows"] if r is not None])]


def _row(measure: Measure, records: dict[str, tuple[list[Any], dict[str, Any]]]) -> dict[str, Any] | None:
    values = {name: v for name, (_, record) in records.items() if (v := measure.value(record)) is not None}
    if not values:
        return None
    badness = {"high": lambda v: -v, "low": lambda v: v, "one": lambda v: abs(v - 1)}.get(measure.better)
    best = [n for n, v in values.items() if badness(v) == min(map(badness, values.values()))] if badness and len(set(values.values())) > 1 else []
    where = {name: [*path, *measure.path] for name, (path, _) in records.items()}
    return {"title": measure.title, "kind": KINDS[measure.unit], "better": measure.better, "hint": BETTER[measure.better], "where": where, "best": best}


def agreement(i: int, record: dict[str, Any]) -> dict[str, Any] | None:
    """Matrices of sample `i`: `names`, and `matched`, `ari` {(row, column): (path in `report.json`, value or None)}; None with fewer than two segmentations."""
    comparison = record["comparison"]
    if not comparison or not comparison["agreement"]:
        return None
    known = comparison["segmentations"]
    names = [n for n in record["segmentations"] if n in known] + [n for n in known if n not in record["segmentations"]]
    matched, ari = {}, {}
    for k, pair in enumerate(comparison["agreement"]):
        at = ["samples", i, "comparison", "agreement", k]
        one, other = pair["first"], pair["second"]
        matched[one, other] = [*at, "matched_first"], pair["matched_first"]
        matched[other, one] = [*at, "matched_second"], pair["matched_second"]
        ari[one, other] = ari[other, one] = [*at, "ari"], pair["ari"]
    return {"names": names, "matched": matched, "ari": ari}
