"""The samplesheet: one row per sample; every problem is found at once. The same rules as `assets/schema_input.json`."""

from __future__ import annotations

import csv
import difflib
import io
import re
from dataclasses import dataclass
from pathlib import Path

from istseg.artifacts.annotations import UNITS
from istseg.raw import READERS
from istseg.raw.base import Options

REQUIRED = ("sample", "platform", "path")
RAW_OPTIONS = ("nucleus_stain", "membrane_stains", "z_planes", "fovs", "pixel_size_um")
"""How a raw folder is read."""
OPTIONAL = (*RAW_OPTIONS, "annotations", "annotations_unit")
_RESULTS = "cohort|input|pipeline_info|report[.]html|report[.]json|metrics[.]tsv|istseg_mqc[.]json|outputs[.]json|checksums[.]sha256|ro-crate-metadata[.]json"
NAME_PATTERN = rf"^(?!({_RESULTS})$)[A-Za-z0-9][A-Za-z0-9_.-]{{0,79}}$"
NAME_RULE = (
    "use up to 80 letters, digits, `_`, `-`, `.`, the first a letter or digit, and none of the names of results: "
    f"{_RESULTS.replace('[.]', '.').replace('|', ', ')}."
)
"""`NAME_PATTERN` in words."""
STAIN_PATTERN = r"^[A-Za-z0-9_.+|/ -]+$"


@dataclass(frozen=True)
class Row:
    """One sample. Empty cells are None; `line` is its line in the file."""

    line: int
    sample: str
    platform: str
    path: str
    nucleus_stain: str | None = None
    membrane_stains: str | None = None
    z_planes: str | None = None
    fovs: str | None = None
    pixel_size_um: str | None = None
    annotations: str | None = None
    annotations_unit: str | None = None


def read(path: Path, problems: list[str]) -> list[Row]:
    """Read the rows; what is wrong is appended to `problems`. Rows that lack something needed are left out."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}).")
        return []
    except UnicodeDecodeError:
        problems.append(f"{path}: is not text in UTF-8; save it as `CSV UTF-8`.")
        return []
    if "\0" in text:
        problems.append(f"{path}: is not text in UTF-8; save it as `CSV UTF-8`.")
        return []
    try:
        lines = [(number, cells) for number, cells in _cells(text) if any(cells)]
    except csv.Error as error:
        problems.append(f"{path}: cannot be read as CSV ({error}). Is a double quote not closed?")
        return []
    if not lines:
        problems.append(f"{path}: is empty; it needs the header {','.join(REQUIRED)} and one line per sample.")
        return []
    header = lines[0][1]
    wrong = _check_header(path, header)
    if wrong:
        problems += wrong
        return []
    if len(lines) == 1:
        problems.append(f"{path}: has a header but no sample; add one line per sample.")
        return []
    rows = [row for number, cells in lines[1:] if (row := _row(path, number, header, cells, problems))]
    _check_unique(path, rows, problems)
    return rows


def _cells(text: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n")))
    return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]


def _check_header(path: Path, header: list[str]) -> list[str]:
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        return [f"{path}: its columns are separated by {'semicolons' if ';' in header[0] else 'tabs'}; save it with commas."]
    known = [*REQUIRED, *OPTIONAL]
    problems = []
    for name in dict.fromkeys(header):
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"columns are {', '.join(known)}."
            problems.append(f"{path}: there is no column {name!r}; {hint}")
        elif header.count(name) > 1:
            problems.append(f"{path}: has the column {name!r} {header.count(name)} times.")
    problems += [f"{path}: lacks the column {name}." for name in REQUIRED if name not in header]
    return problems


def _row(path: Path, number: int, header: list[str], cells: list[str], problems: list[str]) -> Row | None:
    where = f"{path} line {number}"
    found = len(problems)
    if len(cells) > len(header):
        problems.append(f"{where}: has {len(cells)} values, the header has {len(header)} columns; put a value that holds a comma into double quotes.")
        return None
    values = {name: value for name, value in zip(header, cells, strict=False) if value}
    problems += [f"{where}: has no {name}." for name in REQUIRED if name not in values]
    if "sample" in values and not re.fullmatch(NAME_PATTERN, values["sample"]):
        problems.append(f"{where}: the sample name {values['sample']!r} is not allowed; {NAME_RULE}")
    if "platform" in values and values["platform"] not in READERS:
        near = difflib.get_close_matches(values["platform"].lower(), READERS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(READERS)}."
        problems.append(f"{where}: the platform {values['platform']!r} is not known; {hint}")
    for name in ("nucleus_stain", "membrane_stains"):
        if any(part.strip() and not re.fullmatch(STAIN_PATTERN, part) for part in values.get(name, "").split(";")):
            problems.append(f"{where}: {name} {values[name]!r} holds characters that no stain has; separate stains by `;`.")
    if values.get("platform", "cosmx") != "cosmx":
        problems += [f"{where}: {name} is only for cosmx; leave it empty." for name in ("fovs", "pixel_size_um") if name in values]
    if values.get("annotations_unit", "px") not in UNITS:
        problems.append(f"{where}: annotations_unit is {values['annotations_unit']!r}; it should be {' or '.join(UNITS)}.")
    if "annotations_unit" in values and "annotations" not in values:
        problems.append(f"{where}: has an annotations_unit but no annotations.")
    Options.parse(problems, f"{where}: ", **{name: values.get(name) for name in RAW_OPTIONS})
    return Row(number, **values) if len(problems) == found else None


def _check_unique(path: Path, rows: list[Row], problems: list[str]) -> None:
    named: dict[str, list[Row]] = {}
    for row in rows:
        named.setdefault(row.sample.lower(), []).append(row)
    for same in named.values():
        if len(same) > 1:
            lines = ", ".join(str(row.line) for row in same)
            times = f"is there {len(same)} times (upper and lower case are the same)"
            problems.append(f"{path} lines {lines}: the sample name {same[0].sample!r} {times}; every sample needs its own.")
