"""The parameters of a run, checked against `nextflow_schema.json` (groups in `$defs`, joined by `allOf`); every problem at once."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import jsonschema

from istseg.artifacts.files import read_json
from istseg.errors import InputError

_TYPES = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text"}


def check_files(params: Path, schema: Path, problems: list[str]) -> dict[str, Any]:
    """Read and check parameters; problems are appended. Empty when the file cannot be read."""
    try:
        values = read_json(params, "the parameters of the run")
        rules = read_json(schema, "nextflow_schema.json")
    except InputError as error:
        problems += error.problems
        return {}
    problems += check(values, rules)
    return values


def check(values: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """All problems of parameters. Empty values (null) count as not given. That files exist is checked where the run starts: tasks may not see them."""
    rules: dict[str, Any] = {}
    for group in schema.get("$defs", {}).values():
        rules.update(group.get("properties", {}))
    given = {name: value for name, value in values.items() if value is not None}
    problems = [_unknown(name, list(rules)) for name in sorted(set(given) - set(rules))]
    problems += [f"--{name}: is missing. {rules.get(name, {}).get('description', '')}".rstrip() for name in sorted(_required(schema) - set(given))]
    for name in sorted(set(given) & set(rules)):
        errors = jsonschema.Draft202012Validator(rules[name]).iter_errors(given[name])
        problems += [f"--{name}: {_say(error, rules[name])}" for error in sorted(errors, key=lambda e: str(e.validator))[:1]]
        problems += _names(name, given[name], rules[name].get("items"))
    return problems + _together(given)


def _unknown(name: str, known: list[str]) -> str:
    plain = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).replace("-", "_")
    near = difflib.get_close_matches(plain, known, 1, cutoff=0.5)
    hint = f"did you mean --{near[0]}?" if near else "--help lists them."
    return f"--{name}: there is no such parameter; {hint}"


def _required(schema: dict[str, Any]) -> set[str]:
    names = set(schema.get("required", []))
    for group in schema.get("$defs", {}).values():
        names |= set(group.get("required", []))
    return names


def _names(name: str, value: Any, items: dict[str, Any] | None) -> list[str]:
    """Problems of a list of names in one text, separated by commas; `none` stands alone."""
    if items is None or not isinstance(value, str) or value == "none":
        return []
    known = items["enum"]
    unknown = [part for part in dict.fromkeys(value.split(",")) if part not in known]
    near = {part: difflib.get_close_matches(part, known, 1) for part in unknown}
    hints = {part: f"; did you mean {near[part][0]}?" if near[part] else "; `none` alone is for none." for part in unknown}
    return [f"--{name}: {part!r} is none of {', '.join(known)}{hints[part]}" for part in unknown]


def _say(error: jsonschema.ValidationError, rule: dict[str, Any]) -> str:
    value = error.instance
    if error.validator == "type":
        return f"must be {_TYPES.get(rule['type'], rule['type'])}, it is {value!r}."
    if error.validator == "enum":
        near = difflib.get_close_matches(str(value), [str(v) for v in rule["enum"]], 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        return f"{value!r} is none of {', '.join(map(str, rule['enum']))}{hint}"
    if error.validator in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        low, high = rule.get("minimum"), rule.get("maximum")
        span = f"between {low} and {high}" if None not in (low, high) else f"at least {low}" if low is not None else f"at most {high}"
        return f"must be {span}, it is {value}."
    if error.validator == "pattern":
        return f"{value!r} is not of the right form. {rule.get('description', '')}".rstrip()
    return f"{error.message}."


def _together(given: dict[str, Any]) -> list[str]:
    """What no single parameter says."""
    problems = []
    if given.get("teacher") == "cellpose":
        missing = [name for name in ("nuclei_weights", "cyto_weights") if not given.get(name)]
        problems += [f"--{name}: the teacher cellpose needs it (a file; nothing is downloaded)." for name in missing]
    if given.get("base_model") == "scratch" and given.get("finetune", "none") == "none":
        problems.append("--base_model: `scratch` is an untrained network; add --finetune sample or cohort, or give weights.")
    if given.get("base_model") != "scratch":
        if given.get("backbone"):
            problems.append("--backbone: only an untrained network takes it, weights bring their own; leave it out or use --base_model scratch.")
        if given.get("rna_input") and given.get("finetune", "none") == "none":
            problems.append("--rna_input: weights bring their own; leave it out, or add --finetune sample or cohort, which teaches them another.")
    if isinstance(given.get("contain"), (int, float)) and isinstance(given.get("intersect"), (int, float)) and given["intersect"] >= given["contain"]:
        problems.append(f"--intersect: must be below --contain ({given['contain']}), it is {given['intersect']}.")
    return problems
