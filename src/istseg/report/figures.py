"""Figures as plotly JSON (`{"data", "layout", "alt"}`): plain dictionaries, drawn by the browser, coloured by the page's theme.

Texts that come from data are HTML-escaped because plotly reads its labels as a kind of HTML.
"""

from __future__ import annotations

import base64
from html import escape
from typing import Any

import numpy as np

from istseg.artifacts.metrics import FLAGS, Metrics
from istseg.report import palette

Figure = dict[str, Any]

UMAP_POINTS = 5000
_UMAP_ALL = 150_000
"""Points of all embeddings of a report together: keeps the file small for many samples."""
_COUNTS = [[0, "#31446b"], [0.25, "#666970"], [0.5, "#958f78"], [0.75, "#cab969"], [1, "#ffea46"]]
"""Cividis without its darkest fifth, which could not be seen on a dark page."""
_BARS = 80
_HEIGHT = 290


def umap_cap(n_embeddings: int) -> int:
    """Points that one embedding may show."""
    return int(min(UMAP_POINTS, max(400, _UMAP_ALL // max(n_embeddings, 1))))


def histogram(key: str, title: str, unit: str, metrics: dict[str, Metrics]) -> Figure | None:
    """Overlaid outlines of one histogram of all segmentations, as share of the cells per unit.

    The share per unit, not the count, is drawn: segmentations differ in their number of cells and may differ in their bins.
    """
    traces, widest = [], 0.0
    edges_of = {}
    for name, m in metrics.items():
        h = m.histograms.get(key) or {}
        counts, edges = np.asarray(h.get("counts", []), float), np.asarray(h.get("edges", []), float)
        if not counts.sum():
            continue
        edges_of[name] = edges
        widths = np.diff(edges)
        share = 100 * counts / counts.sum() / widths
        colour, dash = palette.segmentation(name, list(metrics))
        x = np.repeat(edges, 2)
        y = np.concatenate([[0.0], np.repeat(share, 2), [0.0]])
        widest = max(widest, float(edges[-1]))
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": escape(name), "x": _short(x), "y": _short(y),
                "line": {"color": colour, "dash": dash, "width": 2}, "fill": "tozeroy", "fillcolor": _faded(colour),
                "hovertemplate": f"{escape(unit) or 'x'} %{{x:.4~g}}<br>%{{y:.3~g}} % of cells per unit<extra>{escape(name)}</extra>",
            }
        )  # fmt: skip
    if not traces:
        return None
    medians = ", ".join(f"{n} {m.quantiles[key]['median']:.4g}" for n, m in metrics.items() if key in m.quantiles)
    x_axis: dict[str, Any] = {"title": {"text": f"{title}{f' ({unit})' if unit else ''}"}}
    if all(_is_logarithmic(e) for e in edges_of.values()):
        x_axis["type"] = "log"
    else:
        x_axis["range"] = [0, widest]
    return {
        "data": traces,
        "layout": _layout(xaxis=x_axis, yaxis={"title": {"text": "% of cells per unit"}, "rangemode": "tozero"}),
        "alt": f"Distribution of {title.lower()} over cells. Medians: {medians}.",
    }


def flags(metrics: dict[str, Metrics]) -> Figure | None:
    """One stacked bar per segmentation: share of the cells by flag."""
    judged = {n: sum(m.flags[flag] for flag in FLAGS) for n, m in metrics.items()}
    shown = {n: m for n, m in metrics.items() if judged[n]}
    if not shown:
        return None
    names = list(reversed(shown))
    traces = []
    for flag in FLAGS:
        share = [100 * shown[n].flags[flag] / judged[n] for n in names]
        traces.append(
            {
                "type": "bar", "orientation": "h", "name": palette.FLAG_NAMES[flag], "y": [escape(n) for n in names], "x": _short(share),
                "text": [f"{s:.0f} %" if s >= 6 else "" for s in share], "textposition": "inside", "insidetextanchor": "middle", "textangle": 0,
                "textfont": {"color": "#111"},
                "customdata": [shown[n].flags[flag] for n in names],
                "marker": {"color": palette.FLAGS[flag], "line": {"width": 0}},
                "hovertemplate": "%{customdata:,} cells, %{x:.1f} %<extra>" + palette.FLAG_NAMES[flag] + "</extra>",
            }
        )  # fmt: skip
    said = "; ".join(f"{n}: " + ", ".join(f"{palette.FLAG_NAMES[f]} {m.flags[f]}" for f in FLAGS) for n, m in shown.items())
    layout = _layout(xaxis={"title": {"text": "% of cells"}, "range": [0, 100]}, yaxis={"showgrid": False, "automargin": True}, barmode="stack")
    layout["height"] = 130 + 46 * len(names)
    layout["legend"]["traceorder"] = "normal"
    return {"data": traces, "layout": layout, "alt": f"Cells by flag. {said}."}


def density(thresholds: dict[str, Any]) -> Figure | None:
    """RNA density inside nuclei with the background threshold T_b."""
    h = thresholds["density_histogram"]
    t_b = thresholds["background_density"]
    return _marked(h, t_b, f"T_b = {t_b:.3g}", "RNA density inside nuclei (transcripts per µm²)", "% of nucleus pixels", "RNA density inside nuclei")


def nucleus_counts(thresholds: dict[str, Any]) -> Figure | None:
    """Transcripts per nucleus with the threshold T_spurious."""
    h = thresholds["count_histogram"]
    values, n = np.asarray(h.get("values", []), float), np.asarray(h.get("counts", []), float)
    if not n.sum():
        return None
    # Only values that occur are listed: they are put into bins of a whole width, so that gaps stay gaps.
    last = values[np.searchsorted(np.cumsum(n), 0.995 * n.sum())]
    width = int(np.ceil((last + 1) / _BARS))
    counts = np.bincount((values // width).astype(int), weights=n)
    edges = np.arange(len(counts) + 1) * width
    t = thresholds["spurious_count"]
    return _marked({"edges": edges, "counts": counts}, t, f"T_spurious = {t:.3g}", "Transcripts per nucleus", "% of nuclei", "Transcripts per nucleus")


def _marked(h: dict[str, Any], at: float, label: str, x_title: str, y_title: str, what: str) -> Figure | None:
    """Bars of a histogram with one threshold drawn as a line; what lies below it is shown in another colour.

    Bins that grow by a constant factor after a first one from 0 (`calibrate` writes them so) are drawn on a logarithmic axis; the first, which holds the
    zeros, becomes one more step to the left.
    """
    counts, edges = np.asarray(h.get("counts", []), float), np.asarray(h.get("edges", []), float)
    if not counts.sum():
        return None
    logarithmic = len(edges) > 4 and edges[0] == 0 and _is_logarithmic(edges[1:])
    below = edges[1:] <= at
    if logarithmic:
        edges = np.concatenate([[edges[1] ** 2 / edges[2]], edges[1:]])
    centres, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    share = 100 * counts / counts.sum()
    if not logarithmic and not np.allclose(widths, widths[0]):
        share, y_title = share / widths, f"{y_title} per unit"
    # A long thin tail would squeeze all that matters to the left.
    last = min(len(counts), int(np.searchsorted(np.cumsum(counts), 0.995 * counts.sum())) + 1)
    left, right = float(edges[0]), max(float(edges[last]), at * 1.2)
    bars = {
        "type": "bar", "x": _short(centres), "y": _short(share), "width": _short(widths),
        "marker": {"color": ["#D55E00" if b else "#56B4E9" for b in below], "line": {"width": 0}},
        "hovertemplate": "%{x:.3~g}: %{y:.3~g} %<extra></extra>", "showlegend": False,
    }  # fmt: skip
    x_axis: dict[str, Any] = {"title": {"text": x_title}, "range": [left, right]}
    place = at
    if logarithmic:
        at = max(at, left)
        x_axis |= {"type": "log", "range": [float(np.log10(left)), float(np.log10(right))], "dtick": 1}
        # Plotly takes the place of a note on a logarithmic axis as exponent, that of a line as value.
        place = float(np.log10(at))
    layout = _layout(xaxis=x_axis, yaxis={"title": {"text": y_title}}, bargap=0)
    layout["shapes"] = [{"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "#D55E00", "width": 2, "dash": "dash"}}]
    layout["annotations"] = [{"x": place, "xref": "x", "y": 1.01, "yref": "paper", "xanchor": "auto", "yanchor": "bottom", "text": label, "showarrow": False}]
    return {"data": [bars], "layout": layout, "alt": f"{what}; the threshold {label} is marked."}


def rules_of(by_layer: dict[str, dict[str, int]]) -> list[str]:
    """All rules: cells before nuclei, what was kept before what was dropped."""
    names = {rule for counts in by_layer.values() for rule in counts}
    return sorted(names, key=lambda rule: (rule.split("_")[0], "kept" not in rule, rule))


def curation(by_layer: dict[str, dict[str, int]]) -> Figure | None:
    """Objects of the teacher by rule: one bar per rule, grouped by layer."""
    rules = rules_of(by_layer)
    if not rules or not any(sum(c.values()) for c in by_layer.values()):
        return None
    colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
    traces = [
        {
            "type": "bar", "orientation": "h", "name": escape(layer), "y": [escape(r.replace("_", " ")) for r in reversed(rules)],
            "x": [by_layer[layer].get(r, 0) for r in reversed(rules)], "marker": {"color": colours[i % len(colours)]},
            "hovertemplate": "%{y}: %{x:,}<extra>" + escape(layer) + "</extra>",
        }
        for i, layer in enumerate(by_layer)
    ]  # fmt: skip
    layout = _layout(xaxis={"title": {"text": "objects of the teacher"}}, yaxis={"automargin": True, "showgrid": False}, barmode="group")
    layout["height"] = 110 + len(rules) * max(26, 14 * len(by_layer))
    return {"data": traces, "layout": layout, "alt": "Objects of the teacher by curation rule; the numbers stand in the table below."}


def planes(by_plane: dict[str, int]) -> Figure | None:
    """Transcripts by plane."""
    if len(by_plane) < 2:
        return None
    keys = sorted(by_plane, key=lambda k: (float(k) if _is_number(k) else 0.0, k))
    bars = {"type": "bar", "x": [escape(str(k)) for k in keys], "y": [by_plane[k] for k in keys], "marker": {"color": "#0072B2"}, "showlegend": False}
    bars["hovertemplate"] = "plane %{x}: %{y:,}<extra></extra>"
    layout = _layout(xaxis={"title": {"text": "plane (z)"}, "type": "category"}, yaxis={"title": {"text": "transcripts"}})
    return {"data": [bars], "layout": layout, "alt": "Transcripts by plane: " + ", ".join(f"{k}: {by_plane[k]}" for k in keys) + "."}


def umap(metrics: Metrics, cap: int) -> tuple[Figure, Figure, Figure] | None:
    """The embedding coloured by flag, by counts and by cluster; at most `cap` cells, evenly taken."""
    e = metrics.embedding
    n = len(e.get("x", []))
    if not n:
        return None
    take = np.unique(np.linspace(0, n - 1, min(n, cap)).astype(int))
    x, y = (np.asarray(e[k], float)[take] for k in ("x", "y"))
    flag, cluster, counts = np.asarray(e["flag"], int)[take], np.asarray(e["cluster"], int)[take], np.asarray(e["log_counts"], float)[take]
    size = 5 if len(take) < 1500 else 3.5
    axis = {"showticklabels": False, "zeroline": False, "showgrid": False, "ticks": ""}

    def layout() -> dict[str, Any]:
        result = _layout(xaxis={**axis, "title": {"text": "UMAP 1"}}, yaxis={**axis, "title": {"text": "UMAP 2"}, "scaleanchor": "x"}, height=360)
        result["legend"]["itemsizing"] = "constant"
        return result

    by_flag = []
    # Rare flags are drawn last, on top; the legend keeps the usual order.
    for i in sorted(range(len(FLAGS)), key=lambda i: -int((flag == i).sum())):
        of = flag == i
        by_flag.append(
            {
                "type": "scattergl", "mode": "markers", "name": palette.FLAG_NAMES[FLAGS[i]], "legendrank": i + 1, "x": packed(x[of]), "y": packed(y[of]),
                "marker": {"size": size, "color": palette.FLAGS[FLAGS[i]], "opacity": 0.75}, "hovertemplate": palette.FLAG_NAMES[FLAGS[i]] + "<extra></extra>",
            }
        )  # fmt: skip
    bar = {"title": {"text": "log₁₀(n + 1)"}, "thickness": 12, "outlinewidth": 0}
    by_counts = {
        "type": "scattergl", "mode": "markers", "x": packed(x), "y": packed(y), "showlegend": False,
        "marker": {"size": size, "color": packed(counts), "colorscale": _COUNTS, "opacity": 0.85, "colorbar": bar},
        "hovertemplate": "log₁₀(n + 1) = %{marker.color:.2f}<extra></extra>",
    }  # fmt: skip
    by_cluster = []
    for c in np.unique(cluster).tolist():
        of, (colour, symbol) = cluster == c, palette.cluster(c)
        by_cluster.append(
            {
                "type": "scattergl", "mode": "markers", "name": str(c), "x": packed(x[of]), "y": packed(y[of]),
                "marker": {"size": size, "color": colour, "symbol": symbol, "opacity": 0.75}, "hovertemplate": f"cluster {c}<extra></extra>",
            }
        )  # fmt: skip
    shown = f"{len(take)} of {metrics.n_cells} cells of {metrics.segmentation}"
    return (
        {"data": by_flag, "layout": layout(), "alt": f"UMAP of {shown}, coloured by flag."},
        {"data": [by_counts], "layout": layout(), "alt": f"UMAP of {shown}, coloured by the logarithm of the counts."},
        {"data": by_cluster, "layout": layout(), "alt": f"UMAP of {shown}, coloured by cluster."},
    )


def maps(metrics: Metrics) -> tuple[Figure, Figure] | None:
    """Share of flagged cells and mean transcripts per cell, square by square."""
    if not metrics.maps:
        return None
    return _heat(metrics.maps, "flagged", "Share of the cells that are flagged", 100, "%"), _heat(metrics.maps, "transcripts", "Mean transcripts per cell")


def agreement(maps: dict[str, Any], main: str, other: str) -> Figure | None:
    """Share of the cells of `main` with a partner in `other`, square by square."""
    return _heat(maps, "matched", f"Share of the cells of {main} with a partner in {other}", 100, "%", 100.0) if maps else None


def _heat(maps: dict[str, Any], key: str, title: str, factor: float = 1.0, unit: str = "", top: float | None = None) -> Figure:
    """Sums of a key per cell, as a map; squares without cells stay empty."""
    cells, sums, side = np.asarray(maps["cells"], float), np.asarray(maps[key], float), maps["square_um"]
    cells[cells == 0] = np.nan
    values = factor * sums / cells
    axis = {"showgrid": False, "zeroline": False, "ticksuffix": " µm", "nticks": 4, "constrain": "domain"}
    trace = {
        "type": "heatmap", "z": packed(values) | {"shape": f"{cells.shape[0]}, {cells.shape[1]}"}, "x0": side / 2, "dx": side, "y0": side / 2, "dy": side,
        "colorscale": _COUNTS, "zmin": 0, "zmax": top or float(np.nanpercentile(values, 99)) or 1.0, "hoverongaps": False,
        "colorbar": {"title": {"text": unit}, "thickness": 12, "outlinewidth": 0}, "hovertemplate": "%{x:.0f}, %{y:.0f} µm: %{z:.3~g}<extra></extra>",
    }  # fmt: skip
    layout = _layout(xaxis=axis, yaxis={**axis, "autorange": "reversed", "scaleanchor": "x"}, height=360)
    return {"data": [trace], "layout": layout, "alt": f"{title}, in squares of {side:g} µm; lowest {np.nanmin(values):.3g}, highest {np.nanmax(values):.3g}."}


def training(series: dict[str, list[float | None]], best: int | None, before: float | None = None) -> Figure | None:
    """Losses by epoch; `series` maps a name to one value per epoch, `best` is the epoch that was kept (from 1), `before` the validation loss at the start."""
    if not series:
        return None
    styles = {"train": ("#0072B2", "solid", "circle"), "validation": ("#D55E00", "dash", "diamond")}
    traces = []
    for name, values in series.items():
        start = [before] if before is not None and name.startswith("validation") else []
        colour, dash, symbol = next((s for k, s in styles.items() if name.startswith(k)), ("#7F7F7F", "dot", "square"))
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": escape(name.replace("_", " ")),
                "x": list(range(1 - len(start), len(values) + 1)), "y": start + values,
                "line": {"color": colour, "dash": dash, "width": 2}, "marker": {"symbol": symbol, "size": 6},
                "hovertemplate": "epoch %{x}: %{y:.4~g}<extra>" + escape(name.replace("_", " ")) + "</extra>",
            }
        )  # fmt: skip
    layout = _layout(xaxis={"title": {"text": "epoch"}}, yaxis={"title": {"text": "loss"}, "rangemode": "tozero"})
    if best is not None:
        layout["shapes"] = [
            {"type": "line", "x0": best, "x1": best, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "#7F7F7F", "width": 1, "dash": "dot"}}
        ]
        layout["annotations"] = [{"x": best, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top", "text": " kept", "showarrow": False}]
    return {"data": traces, "layout": layout, "alt": f"Learning curves over {max(len(v) for v in series.values())} epochs."}


def cohort(samples: list[dict[str, Any]]) -> Figure | None:
    """Rates of every sample and segmentation in four panels, one row per sample."""
    rows = [s for s in samples if s["segmentations"]]
    if len(rows) < 2:
        return None
    panels = [
        ("Transcripts in cells", lambda m: m["transcripts"].get("fraction_in_cells")),
        ("Spurious cells", lambda m: m["flags"].get("spurious_rate")),
        ("Inconsistent cells", lambda m: m["flags"].get("inconsistent_rate")),
        ("Nuclei in one cell", lambda m: m["nuclei"].get("fraction_in_one_cell")),
    ]
    names = [escape(s["sample"]) for s in rows]
    segmentations = list(dict.fromkeys(n for s in rows for n in s["segmentations"]))
    symbols = ["circle", "diamond-open", "square-open", "triangle-up-open", "x"]
    traces = []
    layout = _layout(height=150 + 26 * len(rows))
    for i, (title, read) in enumerate(panels):
        axis = "" if i == 0 else str(i + 1)
        left = i / len(panels)
        layout[f"xaxis{axis}"] = {
            "domain": [left + 0.022, left + 1 / len(panels) - 0.022],
            "title": {"text": title},
            "rangemode": "tozero",
            "ticksuffix": " %",
            "tickangle": 0,
            "nticks": 4,
            "zeroline": False,
        }
        for j, name in enumerate(segmentations):
            points = [(n, read(s["segmentations"][name])) for n, s in zip(names, rows, strict=True) if name in s["segmentations"]]
            points = [(n, v) for n, v in points if v is not None]
            colour, _ = palette.segmentation(name, segmentations)
            traces.append(
                {
                    "type": "scatter", "mode": "markers", "name": escape(name), "legendgroup": name, "showlegend": i == 0, "xaxis": f"x{axis}",
                    "x": _short([100 * v for _, v in points]), "y": [n for n, _ in points],
                    "marker": {"color": colour, "symbol": symbols[j % len(symbols)], "size": 10, "line": {"width": 2, "color": colour}},
                    "cliponaxis": False, "hovertemplate": "%{y}: %{x:.1f} %<extra>" + escape(name) + "</extra>",
                }
            )  # fmt: skip
    layout["yaxis"] = {"type": "category", "categoryorder": "array", "categoryarray": names[::-1], "automargin": True, "title": {"text": ""}}
    layout["margin"]["b"] = 50
    return {"data": traces, "layout": layout, "alt": "Rates of every sample and segmentation; the numbers stand in the table of samples."}


def _layout(**more: Any) -> dict[str, Any]:
    return {
        "height": _HEIGHT,
        "margin": {"l": 56, "r": 12, "t": 34, "b": 48},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left", "font": {"size": 11}},
        "hovermode": "closest",
        **more,
    }


def _short(values: Any) -> list[float]:
    """Six significant digits: enough for a picture, half the size."""
    return [float(f"{v:.6g}") for v in values]


def packed(values: np.ndarray) -> dict[str, str]:
    """Plotly's binary form of an array (float32, little-endian, base64)."""
    return {"dtype": "f4", "bdata": base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()}


def _faded(colour: str) -> str:
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},0.10)"


def _is_logarithmic(edges: np.ndarray) -> bool:
    """Whether bins grow by a constant factor."""
    if len(edges) < 3 or edges[0] <= 0:
        return False
    ratios = edges[1:] / edges[:-1]
    return bool(np.allclose(ratios, ratios[0], rtol=1e-3) and ratios[0] > 1.001 and not np.allclose(np.diff(edges), np.diff(edges)[0]))


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
