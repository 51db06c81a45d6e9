"""From `report.json`, figures and pictures to one HTML file that opens from disk and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from istseg.artifacts.metrics import FLAGS
from istseg.report import figures, methods, palette, tables, viewer
from istseg.report.collect import MAIN, Collection, Found
from istseg.report.numbers import limit_text, show
from istseg.report.pictures import Budget, data_uri

_OVERVIEW_SIDE, _CROP_SIDE = 2000, 288
_DECISION_TITLES = {
    "ap50": "Average precision at IoU 0.5",
    "mean_best_iou": "Mean IoU with the best match",
    "boundary_iou": "Boundary IoU",
    "spurious_rate": "Spurious cells",
    "inconsistent_rate": "Inconsistent cells",
    "nuclei_in_own_cell": "Nuclei alone in a cell",
    "transcripts_in_cells": "Transcripts in cells",
    "density_in_cells": "Transcript density, cells to nuclei",
    "label_offset_um": "Offset of the labels from the nuclei, µm",
    "cells_without_nucleus": "Cells without nucleus",
}
_NONE = Markup('<span class="none" title="not measured">–</span>')
_BRIEF = 160
"""Longest text of a detail of the input; longer ones are in report.json only."""
_HISTOGRAMS = (("n_transcripts", "Transcripts per cell", ""), ("n_genes", "Genes per cell", ""), ("area_um2", "Cell area", "µm²"))


def html(collection: Collection, report: dict[str, Any]) -> str:
    """The page.

    Parameters
    ----------
    report
        Result of `summary.summarise`; every number of the page is read from it and carries its JSON pointer (`data-at`).

    Raises
    ------
    InputError
        If a picture named in `metrics.json` is missing or broken.
    """
    drawn: dict[str, figures.Figure] = {}

    def keep(name: str, figure: figures.Figure | None) -> str | None:
        if figure is None:
            return None
        drawn[name] = figure
        return name

    cap = figures.umap_cap(sum(len(f.assessed) for f in collection.samples))
    budget = Budget.of(len(collection.samples))
    views = [_view(i, found, record, keep, cap, budget) for i, (found, record) in enumerate(zip(collection.samples, report["samples"], strict=True))]
    trainings = [
        {"figure": keep(f"training-{i}", figures.training(*curve(t["curves"]))), "rows": decision_rows(t["decision"])}
        for i, t in enumerate(report["trainings"])
    ]
    text, references = methods.paragraph(report)
    environment = _environment(report)
    scripts = [_plotly(), _asset("app.js")]
    return environment.get_template("report.html.j2").render(
        report=report,
        views=views,
        trainings=trainings,
        cohort=keep("cohort", figures.cohort(report["samples"])),
        methods=text,
        references=references,
        figures=drawn,
        # Both are files of the package; data of a run reach the page as escaped JSON.
        style=Markup(_asset("style.css")),  # nosec B704
        scripts=[Markup(s) for s in scripts],  # nosec B704
        policy=_policy(scripts),
        flags=FLAGS,
        flag_names=palette.FLAG_NAMES,
        flag_colours=palette.FLAGS,
        main=MAIN,
    )


def curve(curves: dict[str, Any] | None) -> tuple[dict[str, list[float | None]], int | None, float | None]:
    """From `curves.json`: name → one loss per epoch, the epoch that was kept (from 1), and the validation loss before training."""
    known = curves or {}
    epochs = known.get("epochs") or []
    names = [n for n in dict.fromkeys(k for e in epochs for k in e) if n in ("train_loss", "validation_loss")]
    return {n: [e.get(n) for e in epochs] for n in names}, known.get("best_epoch"), known.get("validation_loss_before")


def decision_rows(decision: dict[str, Any] | None) -> list[dict[str, str]]:
    """Figures that base and fine-tuned model were compared by: `{"key", "title", "kind"}`."""
    base, tuned = ((decision or {}).get(k) or {} for k in ("base", "finetuned"))
    keys = [k for k in dict.fromkeys([*base, *tuned]) if any(isinstance(side.get(k), (int, float)) for side in (base, tuned))]

    def kind(key: str) -> str:
        if key.endswith("_rate"):
            return "share"
        return "count" if all(isinstance(side.get(key, 0), int) for side in (base, tuned)) else "number"

    return [{"key": k, "title": _DECISION_TITLES.get(k, k.replace("_", " ")), "kind": kind(k)} for k in keys]


def _view(i: int, found: Found, record: dict[str, Any], keep: Any, cap: int, budget: Budget) -> dict[str, Any]:
    """Names of the figures and the pictures of one sample."""
    metrics = {name: found.assessed[name].metrics for name in found.segmentations}
    key = f"s{i}"
    view: dict[str, Any] = {
        "id": key,
        "histograms": [n for h in _HISTOGRAMS if (n := keep(f"{key}-{h[0]}", figures.histogram(*h, metrics)))],
        "flags": keep(f"{key}-flags", figures.flags(metrics)),
        "density": None,
        "nucleus_counts": None,
        "curation": keep(f"{key}-curation", figures.curation(record["curation"]["by_layer"])) if record["curation"] else None,
        "planes": keep(f"{key}-planes", figures.planes(found.sample.transcripts.get("by_plane", {}))) if found.sample else None,
        "umaps": [],
        "overviews": [],
        "galleries": [],
        "regions": [],
        "measures": tables.side_by_side(i, record),
        "agreement": tables.agreement(i, record),
        "maps": [],
        "agreement_maps": [],
        # Stain → place of its focus and seams in `report.json`.
        "stains": {s["name"]: ["samples", i, "tiles", "stains", k] for k, s in enumerate(found.tiles.stains if found.tiles else [])},
    }
    if found.regions:
        regions, folder = found.regions
        shown = [viewer.figure(regions, region, folder, budget.layer, MAIN) for region in regions.regions]
        # Many samples with many segmentations: fewer regions of each, so that the file stays small.
        size = np.cumsum([len(json.dumps(figure["data"])) for figure in shown])
        view["regions"] = [keep(f"{key}-region-{k}", figure) for k, figure in enumerate(shown) if k == 0 or size[k] <= budget.outlines]
    if record["thresholds"]:
        view["density"] = keep(f"{key}-density", figures.density(record["thresholds"]))
        view["nucleus_counts"] = keep(f"{key}-nucleus-counts", figures.nucleus_counts(record["thresholds"]))
    for j, (other, squares) in enumerate((found.comparison.maps if found.comparison else {}).items()):
        if figure := keep(f"{key}-agreement-{j}", figures.agreement(squares, MAIN, other)):
            view["agreement_maps"].append({"name": figure, "other": other})
    for j, name in enumerate(found.segmentations):
        drawn = figures.umap(metrics[name], cap)
        if drawn:
            view["umaps"].append(
                {
                    "segmentation": name,
                    "shown": _of(min(cap, len(metrics[name].embedding["x"])), metrics[name].n_cells),
                    "flag": keep(f"{key}-umap-{j}-flag", drawn[0]),
                    "counts": keep(f"{key}-umap-{j}-counts", drawn[1]),
                    "cluster": keep(f"{key}-umap-{j}-cluster", drawn[2]),
                }
            )
        folder = found.assessed[name].folder
        if metrics[name].overview:
            limit = budget.main_overview if name == MAIN else budget.overview
            uri, width, height = data_uri(folder / metrics[name].overview["file"], limit, _OVERVIEW_SIDE)
            view["overviews"].append({"segmentation": name, "uri": uri, "width": width, "height": height})
        if name == MAIN:
            view["galleries"] = _gallery(found, budget)
            view["maps"] = [keep(f"{key}-map-{k}", figure) for k, figure in enumerate(figures.maps(metrics[name]) or ())]
    return view


def _gallery(found: Found, budget: Budget) -> list[dict[str, Any]]:
    """Example pictures by flag, the flags that matter first; as many of each as the budget allows."""
    assessed = found.assessed[MAIN]
    by_flag: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for k, crop in enumerate(assessed.metrics.crops):
        by_flag.setdefault(crop["flag"], []).append((k, crop))
    each = max(1, budget.max_crops // max(len(by_flag), 1))
    galleries = []
    for flag in ("inconsistent", "spurious", "no_nucleus", "consistent"):
        pictures = []
        for k, crop in by_flag.get(flag, [])[:each]:
            path = assessed.folder / crop["file"]
            if not path.exists():
                path = assessed.folder / "crops" / crop["file"]
            uri, width, height = data_uri(path, budget.crop, _CROP_SIDE)
            pictures.append({"index": k, "uri": uri, "width": width, "height": height, **{n: crop.get(n, "") for n in ("cell_id", "reason")}})
        if pictures:
            galleries.append({"flag": flag, "pictures": pictures})
    return galleries


def ticks(text: str) -> Markup:
    """Escaped text in which `words between backticks` are code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else p for i, p in enumerate(parts))


def _of(shown: int, n: int) -> str:
    return f"{n:,} cells" if shown == n else f"{shown:,} of {n:,} cells"


def brief(value: Any) -> str:
    """A detail of the input in one line; empty when there is nothing to say or it is too long for a table."""
    text = _plain(value)
    return text if len(text) <= _BRIEF else ""


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(
            f"{str(k).replace('_', ' ')}{f' ({_plain(v)})' if isinstance(v, dict) else f': {_plain(v)}'}" for k, v in value.items() if v not in (None, {}, [])
        )
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _environment(report: dict[str, Any]) -> Environment:
    environment = Environment(
        loader=PackageLoader("istseg.report", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def number(kind: str, *where: str | int | list[str | int]) -> Markup:
        """A number of `report.json` with its place: `<data value data-at>`; steps of the path may come in lists."""
        path = [step for part in where for step in (part if isinstance(part, list) else [part])]
        value: Any = report
        for step in path:
            value = value.get(step) if isinstance(value, dict) else value[step]
            if value is None:
                return _NONE
        pointer = "/" + "/".join(str(s).replace("~", "~0").replace("/", "~1") for s in path)
        return Markup('<data value="{}" data-at="{}">{}</data>').format(json.dumps(value), pointer, show(value, kind))

    environment.globals.update(number=number, none_shown=_NONE, limit_text=limit_text, rules_of=figures.rules_of)
    environment.filters["as_text"] = lambda v: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)
    environment.filters["brief"] = brief
    environment.filters["ticks"] = ticks
    environment.filters["words"] = lambda v: str(v).replace("_", " ")
    return environment


def _policy(scripts: list[str]) -> str:
    """Content security policy: only our scripts run, nothing is loaded or sent.

    `unsafe-eval`: plotly's WebGL traces compile their drawing commands.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-eval' {hashes}; base-uri 'none'; form-action 'none'"


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    # HTML knows no escape inside a script: the parser must not see an end tag there. The text is JavaScript of our own pinned library.
    return get_plotlyjs().replace("</script", "<\\/script").replace("\r", "")


def _asset(name: str) -> str:
    return (files("istseg.report") / "templates" / name).read_text(encoding="utf-8")
