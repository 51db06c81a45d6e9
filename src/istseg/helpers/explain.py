"""What a name means: a parameter of the pipeline, a column of the samplesheet or of the table of cells, a check of the report, a flag of a cell."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import istseg
from istseg.artifacts.files import read_json
from istseg.errors import InputError
from istseg.qc.flags import FLAG_OF_REASON
from istseg.report import checks

FLAG_MEANINGS = {
    "consistent": "The cell contains exactly one nucleus and cuts no other.",
    "no_nucleus": "The cell contains and cuts no nucleus, but holds as many transcripts as a nucleus does: it may be cut above or below its nucleus.",
    "spurious": "The cell contains and cuts no nucleus and holds fewer transcripts than T_spurious, a low percentile of the nuclei: noise. Take it out.",
    "inconsistent": "The cell contains several nuclei, or cuts one that it does not contain: its outline is probably wrong.",
}
_STAIN_MEAN = "<stain>_mean"
_COLUMNS = {
    "cell_id": "name of the cell, unique in the sample, the same in all files and exports.",
    "sample": "name of the sample.",
    "area_um2": "area of the outline in µm².",
    "centroid_x_um": "x of the outline's centroid in µm, in the platform's own frame; obsm[\"spatial\"] holds x and y.",
    "centroid_y_um": "y of the outline's centroid in µm, in the platform's own frame; obsm[\"spatial\"] holds x and y.",
    "n_transcripts": "transcripts of genes in the cell; control probes are not in it.",
    "n_genes": "genes with at least one transcript in the cell.",
    "n_control": 'control probes in the cell; each apart in obsm["controls"].',
    "n_nuclei_contained": "nuclei of the teacher that the cell contains (--contain).",
    "n_nuclei_intersected": "nuclei of the teacher that the cell contains or cuts (--intersect).",
    "is_spurious": "true where qc_flag is `spurious`.",
    "is_inconsistent": "true where qc_flag is `inconsistent`.",
    "qc_flag": f"one of {', '.join(FLAG_MEANINGS)}; `istseg explain` tells each.",
    "qc_reason": f"why the cell has its qc_flag: {', '.join(FLAG_OF_REASON)}.",
    "background_fraction": "share of the cell's pixels whose RNA density is below T_b, the background of the sample (0 to 1); NaN outside of the image.",
    _STAIN_MEAN: "mean grey value of a stain in the cell, as in the raw image; NaN outside of the image.",
}
"""Columns of `obs` in counts.h5ad."""


def run(*, name: str, root: Path | None = None) -> str:
    """The explanation of a name, as text.

    Parameters
    ----------
    name
        With or without leading dashes; dashes and underscores are the same.
    root
        Folder of the pipeline; None: where this package's source lies.

    Raises
    ------
    InputError
        If nothing has this name; the message names what is near. If `root` is no folder of the pipeline.
    """
    if root and not (root / "nextflow_schema.json").is_file():
        raise InputError(f"--root {root}: holds no nextflow_schema.json; give the folder of the pipeline, in which main.nf lies.")
    known = entries(root)
    key = name.lstrip("-").replace("-", "_").lower()
    if key not in known and key.endswith("_mean"):
        key = _STAIN_MEAN
    if key in known:
        return "\n".join(known[key])
    near = difflib.get_close_matches(key, known, 3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "parameters, columns of the samplesheet and of the cells, checks of the report and flags of cells have names."
    )
    raise InputError(f"{name}: nothing has this name; {hint}")


def entries(root: Path | None = None) -> dict[str, list[str]]:
    """Name → paragraphs; a name that stands for several things has all of them."""
    found: dict[str, list[str]] = {}
    root = root or Path(istseg.__file__).resolve().parents[2]
    if (root / "nextflow_schema.json").is_file():
        for group in read_json(root / "nextflow_schema.json", "nextflow_schema.json")["$defs"].values():
            for name, rule in group["properties"].items():
                found.setdefault(name.lower(), []).append(_parameter(f"--{name}", rule, f"parameter of the pipeline ({group['title'].lower()})"))
        columns = read_json(root / "assets" / "schema_input.json", "schema_input.json")["items"]["properties"]
        for name, rule in columns.items():
            found.setdefault(name.lower(), []).append(_parameter(name, rule, "column of the samplesheet"))
    for name, check in checks.limits().items():
        found.setdefault(name, []).append(_check(name, check))
    for name, meaning in FLAG_MEANINGS.items():
        found.setdefault(name, []).append(f"{name}, flag of a cell: {meaning}")
    for name, meaning in _COLUMNS.items():
        found.setdefault(name, []).append(f"{name}, column of obs in counts.h5ad: {meaning}")
    return found


def _parameter(shown: str, rule: dict[str, Any], what: str) -> str:
    facts = [f"Default: {rule['default']}."] if rule.get("default") is not None else []
    if "enum" in rule:
        facts.append(f"Values: {', '.join(map(str, rule['enum']))}.")
    if "minimum" in rule and "maximum" in rule:
        facts.append(f"From {rule['minimum']:g} to {rule['maximum']:g}.")
    return " ".join([f"{shown}, {what}: {rule['description']}", *facts])


def _check(name: str, check: dict[str, Any]) -> str:
    span = {"at_least": "at least", "at_most": "at most", "between": "between"}[check["good"]]
    return (
        f"{name}, check of the report: {check['title']}. {check['meaning']} Good is {span} {check['look']} (fail: {check['fail']}). What to do: {check['todo']}"
    )
