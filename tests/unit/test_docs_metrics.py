"""docs/metrics.md explains every measure that tables hold."""

from __future__ import annotations

import re
from pathlib import Path

from istseg.artifacts.comparison import AGAINST, AGREEMENT, Comparison
from istseg.artifacts.metrics import MEASURES
from istseg.report.tables import BETTER, KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def test_every_measure_is_explained():
    named = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.M) for name in re.findall(r"`([a-z_0-9<>]+)`", row)}
    assert {m.name for m in (*MEASURES, *AGAINST, *AGREEMENT)} | {"ap_<t>"} == named


def test_measures_have_names_units_and_directions_of_their_own():
    measures = (*MEASURES, *AGREEMENT, *Comparison("s", [], parameters={"iou_thresholds": [0.5, 0.75]}).measures)
    names = [m.name for m in measures]
    assert len(set(names)) == len(names) and {"ap_0.5", "ap_0.75"} <= set(names)
    assert {m.unit for m in measures} <= set(KINDS) and {m.better for m in measures} <= set(BETTER)
