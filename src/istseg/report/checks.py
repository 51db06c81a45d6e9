"""Verdicts: every check compares one number with the limits of `qc_thresholds.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from istseg.errors import InputError
from istseg.report.collect import MAIN, Found

DEFAULTS = Path(__file__).with_name("qc_thresholds.yaml")
PASS, LOOK, FAIL, NOT_MEASURED = "pass", "look", "fail", "not measured"
_RANK = {NOT_MEASURED: -1, PASS: 0, LOOK: 1, FAIL: 2}
_KEYS = {"title", "group", "unit", "good", "look", "fail", "meaning", "todo"}
_UNITS = {"share", "count", "number", "ratio", "um2", "per_um2"}
_GROUPS = {"input", "segmentation", "run"}
_FLAT_GREY, _FLAT_SHARE = 5.0, 0.10
_SEAM_CELLS = 50
"""Fewer cells at borders than this say nothing: chance alone moves the ratio by more than the limit."""

_FOCUS_SQUARES = 4
_BORDER_UM = 400.0
"""Fewer squares, or shorter borders between fields, say little of a stain."""

Value = tuple[float | None, str]
"""The number, or None and the reason why there is none."""


def limits(override: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Definitions of the checks by name; entries of `override` replace single fields of the shipped ones.

    Raises
    ------
    InputError
        With every unknown check, unknown field, and limit that does not fit.
    """
    definitions = yaml.safe_load(DEFAULTS.read_text())
    problems: list[str] = []
    changes: Any = {}
    if override is not None:
        try:
            changes = yaml.safe_load(Path(override).read_text()) or {}
        except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
            raise InputError(f"{override}: cannot be read as YAML ({error}).") from None
    if not isinstance(changes, dict) or not all(isinstance(v, dict) for v in changes.values()):
        raise InputError(f"{override}: should name checks, each with the fields to change, e.g. `spurious_rate: {{look: 0.05}}`.")
    for name, change in changes.items():
        if name not in definitions:
            problems.append(f"{override}: there is no check {name!r}; there are {', '.join(sorted(definitions))}.")
        elif unknown := set(change) - _KEYS - {"skip"}:
            problems.append(f"{override}: {name} has the unknown fields {sorted(map(str, unknown))}; there are {', '.join(sorted(_KEYS))}, skip.")
        elif change.get("skip"):
            del definitions[name]
        else:
            definitions[name].update({k: v for k, v in change.items() if k != "skip"})
    problems += [p for name, d in definitions.items() for p in _wrong(name, d, override or DEFAULTS)]
    if problems:
        raise InputError(problems)
    return definitions


def _wrong(name: str, definition: dict[str, Any], where: str | Path) -> list[str]:
    for key, allowed in (("unit", _UNITS), ("group", _GROUPS), ("good", set(_BEYOND))):
        if definition[key] not in allowed:
            return [f"{where}: {name}: {key} is {definition[key]!r}; it should be one of {', '.join(sorted(allowed))}."]

    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    look, fail = definition["look"], definition["fail"]
    if definition["good"] == "between":
        if not all(isinstance(v, list) and len(v) == 2 and all(map(number, v)) and v[0] <= v[1] for v in (look, fail)):
            return [f"{where}: {name}: look and fail should be [low, high]."]
        ordered = fail[0] <= look[0] and look[1] <= fail[1]
    elif not (number(look) and number(fail)):
        return [f"{where}: {name}: look and fail should be numbers."]
    else:
        ordered = fail <= look if definition["good"] == "at_least" else look <= fail
    return [] if ordered else [f"{where}: {name}: the limit `fail` ({fail}) is stricter than `look` ({look}); exchange them."]


_BEYOND: dict[str, Callable[[float, Any], bool]] = {
    "at_least": lambda value, limit: value < limit,
    "at_most": lambda value, limit: value > limit,
    "between": lambda value, limit: not limit[0] <= value <= limit[1],
}


def judge(value: float | None, definition: dict[str, Any]) -> str:
    """`pass`, `look`, `fail`, or `not measured` without a value. A value equal to the limit passes it."""
    if value is None:
        return NOT_MEASURED
    beyond = _BEYOND[definition["good"]]
    if beyond(value, definition["fail"]):
        return FAIL
    return LOOK if beyond(value, definition["look"]) else PASS


def worst(verdicts: list[str]) -> str:
    """The worst of several verdicts; `pass` of none."""
    known = [v for v in verdicts if v != NOT_MEASURED]
    return max(known, key=_RANK.__getitem__, default=PASS)


def check(found: Found, derived: dict[str, Any], definitions: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every check of a sample: `{"name", "value", "verdict", "note"}` in the order of the definitions.

    Parameters
    ----------
    derived
        Figures of `summary.derive`.
    """
    results = []
    for name, definition in definitions.items():
        value, note = _VALUES[name](found, derived)
        results.append({"name": name, "value": value, "verdict": judge(value, definition), "note": note})
    return results


def _main(read: Callable[[Any], float | None], why: str = "no cells") -> Callable[[Found, dict[str, Any]], Value]:
    """A number of the metrics of our segmentation."""

    def value(found: Found, derived: dict[str, Any]) -> Value:
        if MAIN not in found.assessed:
            return None, "not assessed"
        number = read(found.assessed[MAIN].metrics)
        return (None, why) if number is None else (number, "")

    return value


def _derived(key: str, why: str) -> Callable[[Found, dict[str, Any]], Value]:
    def value(found: Found, derived: dict[str, Any]) -> Value:
        number = derived.get(key)
        return (None, why) if number is None else (number, "")

    return value


def _given(found: Found) -> list[Any]:
    """Stains that the network sees."""
    return [s for s in found.sample.stains if s.role != "other"] if found.sample else []


def _saturation(found: Found, derived: dict[str, Any]) -> Value:
    stains = _given(found)
    if not stains:
        return None, "not converted"
    stain = max(stains, key=lambda s: s.saturated_fraction)
    return stain.saturated_fraction, stain.name


def _flat(found: Found, derived: dict[str, Any]) -> Value:
    stains = _given(found)
    if not stains:
        return None, "not converted"
    flat = [s.name for s in stains if s.high - s.low < max(_FLAT_GREY, _FLAT_SHARE * abs(s.low))]
    return len(flat), ", ".join(flat)


def _worst_stain(found: Found, figures: list[tuple[str, float]], why: str) -> Value:
    """The largest of the figures by stain."""
    if found.tiles is None:
        return None, "not tiled"
    if not found.tiles.stains:
        return None, "cut into tiles by a version that did not measure it"
    if not figures:
        return None, why
    name, value = max(figures, key=lambda f: f[1])
    return value, name


def _focus(found: Found, derived: dict[str, Any]) -> Value:
    measured = [(s["name"], s["focus"]) for s in found.tiles.stains] if found.tiles else []
    known = [(f"{name}, edge blur {f['blur_um']:.2g} µm", f["out_of_focus"]) for name, f in measured if f["n_squares"] >= _FOCUS_SQUARES]
    return _worst_stain(found, known, f"no stain shows something in {_FOCUS_SQUARES} squares of tissue")


def _stain_seams(found: Found, derived: dict[str, Any]) -> Value:
    measured = [(s["name"], s["seams"]) for s in found.tiles.stains] if found.tiles else []
    known = [(name, f["excess"]) for name, f in measured if f and f["excess"] is not None and f["border_um"] >= _BORDER_UM]
    return _worst_stain(found, known, f"less than {_BORDER_UM:g} µm of stained border between fields of view")


def _seam(key: str) -> Callable[[Found, dict[str, Any]], Value]:
    def value(found: Found, derived: dict[str, Any]) -> Value:
        if MAIN not in found.assessed:
            return None, "not assessed"
        seams = found.assessed[MAIN].metrics.seams
        if seams.get(key) is None:
            return None, "no border between tiles"
        if seams["n_border"] < _SEAM_CELLS:
            return None, f"only {seams['n_border']} cells at borders, {_SEAM_CELLS} are needed"
        return seams[key], ""

    return value


_VALUES: dict[str, Callable[[Found, dict[str, Any]], Value]] = {
    "transcripts_in_image": _derived("fraction_in_image", "no transcripts"),
    "transcript_density": _derived("transcripts_per_um2", "no tissue found yet"),
    "control_rate": _derived("control_rate", "no control probes"),
    "saturation": _saturation,
    "flat_stains": _flat,
    "focus": _focus,
    "stain_seams": _stain_seams,
    "nuclei": _main(lambda m: m.nuclei["total"]),
    "background_threshold": lambda f, d: (f.thresholds.background_density, "") if f.thresholds else (None, "not calibrated"),
    "spurious_threshold": lambda f, d: (f.thresholds.spurious_count, "") if f.thresholds else (None, "not calibrated"),
    "tissue_fraction": lambda f, d: (f.tiles.tissue_fraction, "") if f.tiles else (None, "not tiled"),
    "tiles_skipped": _derived("tiles_skipped_fraction", "not tiled"),
    "cells": _main(lambda m: m.n_cells),
    "cells_vs_teacher": _derived("cells_vs_teacher", "no teacher's cells"),
    "transcripts_per_cell": _main(lambda m: m.quantiles.get("n_transcripts", {}).get("median")),
    "cell_area": _main(lambda m: m.quantiles.get("area_um2", {}).get("median")),
    "transcripts_in_cells": _main(lambda m: m.transcripts.get("fraction_in_cells"), "no transcripts in the image"),
    "spurious_rate": _main(lambda m: m.flags.get("spurious_rate")),
    "inconsistent_rate": _main(lambda m: m.flags.get("inconsistent_rate")),
    "without_nucleus_rate": _main(lambda m: m.flags.get("without_nucleus_rate")),
    "nuclei_in_one_cell": _main(lambda m: m.nuclei.get("fraction_in_one_cell"), "no nuclei"),
    "seam_density": _seam("density_ratio"),
    "seam_area": _seam("area_ratio"),
    "cut_cells": _derived("cut_fraction", "not known"),
}
