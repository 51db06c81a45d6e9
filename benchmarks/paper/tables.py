"""Tables as markdown and CSV, and charts of them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from istseg.artifacts.files import whole

Row = dict[str, Any]
SPREAD = " ±"


def text(value: Any) -> str:
    """As it stands in a table."""
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write(folder: Path, name: str, rows: Sequence[Row]) -> str:
    """Write `<name>.md` and `<name>.csv`; gives the markdown, where a spread stands beside its mean. Columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = [column for column in columns if not column.endswith(SPREAD)]
    lines = ["| " + " | ".join(shown) + " |", "|" + " --- |" * len(shown)]
    lines += ["| " + " | ".join(_with_spread(row, column) for column in shown) + " |" for row in rows]
    with whole(folder / f"{name}.md") as part:
        part.write_text("\n".join(lines) + "\n")
    with whole(folder / f"{name}.csv") as part, open(part, "w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: text(value) for key, value in row.items()} for row in rows)
    return "\n".join(lines)


def _with_spread(row: Row, column: str) -> str:
    value = text(row.get(column))
    return f"{value} ± {text(row[column + SPREAD])}" if row.get(column + SPREAD) is not None else value


def spread(scored: Sequence[Row]) -> Row:
    """Means over samples; with two or more, half of the range beside each, in the column with `SPREAD` at its end."""
    result: Row = {}
    for key in scored[0]:
        values = [one[key] for one in scored if one[key] is not None]
        result[key] = sum(values) / len(values) if values else None
        if len(scored) > 1:
            result[key + SPREAD] = (max(values) - min(values)) / 2 if values else None
    return result


def bars(path: Path, rows: Sequence[Row], group: str, measures: Sequence[str]) -> None:
    """One panel per measure: groups along x, one bar per method."""
    groups, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in (group, "method"))
    figure = Figure(figsize=(1.5 + 2.2 * len(groups), 3.2 * len(measures)), layout="constrained")
    width = 0.85 / len(methods)
    for axes, measure in zip(figure.subplots(len(measures), 1, squeeze=False)[:, 0], measures, strict=True):
        for i, method in enumerate(methods):
            mine = {row[group]: row.get(measure) for row in rows if row["method"] == method}
            axes.bar([g + (i - len(methods) / 2 + 0.5) * width for g in range(len(groups))], [mine.get(g) or 0 for g in groups], width, label=method)
        axes.set_xticks(range(len(groups)), groups)
        axes.set(ylabel=measure)
        axes.grid(axis="y", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    _save(figure, path)


def curves(path: Path, rows: Sequence[Row], x: str, measures: Sequence[str], falling: bool = False) -> None:
    """One panel per measure: a line per method over `x`."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(4.2 * len(measures) + 1.5, 3.6), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for method in methods:
            at = sorted((row[x], row[measure]) for row in rows if row["method"] == method and row.get(measure) is not None)
            if at:
                axes.plot(*zip(*at, strict=True), marker="o", label=method)
        axes.set(xlabel=x, ylabel=measure, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        if falling:
            axes.invert_xaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    _save(figure, path)


def clouds(path: Path, embeddings: dict[str, dict[str, list[float]]], flags: Sequence[str]) -> None:
    """One UMAP per method, coloured by flag."""
    figure = Figure(figsize=(3.6 * len(embeddings), 3.6), layout="constrained")
    for axes, (method, points) in zip(figure.subplots(1, len(embeddings), squeeze=False)[0], embeddings.items(), strict=True):
        for number, flag in enumerate(flags):
            mine = [i for i, f in enumerate(points["flag"]) if f == number]
            axes.scatter([points["x"][i] for i in mine], [points["y"][i] for i in mine], s=4, label=flag)
        axes.set(title=method, xticks=[], yticks=[])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(flags), fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with whole(path) as part:
        figure.savefig(part, dpi=110, metadata={"Software": None})
