"""How numbers are written for readers."""

from __future__ import annotations

from typing import Any

_UNITS = {"um2": " µm²", "per_um2": " /µm²", "mm2": " mm²", "um": " µm"}


def show(value: Any, kind: str) -> str:
    """A number as text.

    Parameters
    ----------
    kind
        `count` (whole number), `share` (0 to 1, shown in %), `number`, `ratio`, `um`, `um2`, `per_um2`, `mm2` (from µm²), `seconds`, `bytes`, or `text`.
    """
    if kind == "text" or isinstance(value, (str, bool)):
        return str(value)
    if kind == "count":
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
    if kind == "share":
        return f"{_share(100 * value)} %"
    if kind == "seconds":
        return _time(value)
    if kind == "bytes":
        return f"{_significant(value / 1e9)} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
    if kind == "mm2":
        value = value / 1e6
    return f"{_significant(value)}{_UNITS.get(kind, '')}"


def limit_text(definition: dict[str, Any]) -> str:
    """The limits of a check in words, e.g. `at least 95 % (fail below 50 %)`."""
    kind = definition["unit"]
    look, fail = definition["look"], definition["fail"]
    if definition["good"] == "between":
        return f"{show(look[0], kind)} to {show(look[1], kind)} (fail outside {show(fail[0], kind)} to {show(fail[1], kind)})"
    if definition["good"] == "at_least":
        return f"at least {show(look, kind)} (fail below {show(fail, kind)})"
    return f"at most {show(look, kind)} (fail above {show(fail, kind)})"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _share(percent: float) -> str:
    # 99.96 % must not be shown as 100 %.
    if 99.95 <= percent < 100:
        return f"{int(percent * 100) / 100:.2f}"
    if 0 < abs(percent) < 1:
        return f"{percent:.2g}"
    return f"{percent:.1f}".removesuffix(".0")


def _significant(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value and abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:.3g}"
