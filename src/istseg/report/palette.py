"""Colours that colour-blind readers can tell apart (Okabe and Ito, 2008), and a line style for each, so that no colour stands alone."""

from __future__ import annotations

FLAGS = {"consistent": "#009E73", "no_nucleus": "#56B4E9", "inconsistent": "#E69F00", "spurious": "#D55E00"}
FLAG_NAMES = {"consistent": "consistent", "no_nucleus": "without nucleus", "inconsistent": "inconsistent", "spurious": "spurious"}
# bandit takes "pass" for a password.
VERDICTS = {"pass": "#009E73", "look": "#E69F00", "fail": "#D55E00"}  # nosec B105
_SEGMENTATIONS = {"istseg": ("#0072B2", "solid"), "teacher": ("#CC79A7", "dash"), "vendor": ("#7F7F7F", "dot")}
_OTHERS = (("#E69F00", "dashdot"), ("#009E73", "longdash"), ("#56B4E9", "longdashdot"), ("#D55E00", "dash"))

_CLUSTERS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499")
_SYMBOLS = ("circle", "diamond", "cross", "triangle-up", "square")


def cluster(number: int) -> tuple[str, str]:
    """Colour (Tol's muted scheme, 2021) and plotly symbol of a cluster."""
    return _CLUSTERS[number % len(_CLUSTERS)], _SYMBOLS[number // len(_CLUSTERS) % len(_SYMBOLS)]


def segmentation(name: str, names: list[str]) -> tuple[str, str]:
    """Colour and plotly dash of a segmentation among all of its sample."""
    if name in _SEGMENTATIONS:
        return _SEGMENTATIONS[name]
    others = sorted(n for n in names if n not in _SEGMENTATIONS)
    return _OTHERS[others.index(name) % len(_OTHERS)]
