"""A samplesheet from the runs that lie below a folder."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from istseg.artifacts.files import whole
from istseg.errors import InputError
from istseg.raw import READERS, open_raw, reader_class, tables
from istseg.raw.folders import walk
from istseg.samplesheet import NAME_PATTERN, REQUIRED

_MAX_DEPTH = 6
_EXPORTED = re.compile(r"cell_metadata\.csv|.+_metadata_file\.csv|cell_ids\.csv")
_OUR_COLUMNS = ({"qc_flag", "qc_reason"}, {"explorer_id", "cell_id"})
"""Of the tables of cells that `export` writes beside files named as the instruments name theirs."""
log = logging.getLogger("istseg")


def run(*, folder: Path, out: Path) -> None:
    """Write a samplesheet with one row for each sample below a folder.

    Each sample is opened as preflight would do it; what is wrong or missing is told as a warning, and the row is written all the same. What `istseg export`
    wrote is left out.

    Parameters
    ----------
    folder
        Is searched, six levels deep; links are followed once.
    out
        The samplesheet; must not exist. Paths below its folder are written relative to it.

    Raises
    ------
    InputError
        If there is no sample, or the samplesheet exists already.
    """
    if out.exists():
        raise InputError(f"{out}: is there already; give another name, or move it away.")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give the folder below which the runs lie.")
    found = find(folder)
    if not found:
        raise InputError(f"{folder}: no raw folder of {', '.join(READERS)} was found down to {_MAX_DEPTH} levels below it.")
    names: set[str] = set()
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(REQUIRED)
    base = out.resolve().parent
    for platform, root in found:
        name = _name(root, folder, names)
        path = root.resolve()
        writer.writerow([name, platform, path.relative_to(base) if path.is_relative_to(base) else path])
        try:
            facts = open_raw(platform, root).inspect()
        except InputError as error:
            log.warning("%s (%s): %s", name, root, error)
            continue
        stains = ", ".join(f"{c.name} ({c.role})" for c in facts.channels)
        log.info("%s: %s %s, %d x %d px, stains %s", name, platform, facts.generation, facts.height_px, facts.width_px, stains)
    with whole(out) as part:
        part.write_text(stream.getvalue(), encoding="utf-8")
    log.info("%s: %d samples", out, len(found))


def find(top: Path) -> list[tuple[str, Path]]:
    """(platform, folder) of every sample below a folder, damaged ones too, in the order of their paths; nothing is looked for inside of a sample."""
    classes = {platform: reader_class(platform) for platform in READERS}
    marked: list[tuple[Path, Path, str]] = []
    remains: list[tuple[Path, Path, str]] = []

    def refused(folder: Path, error: OSError) -> None:
        log.warning("%s: cannot be read (%s) and was not searched.", folder, error.strerror)

    for folder, inside, files in walk(top, _MAX_DEPTH, refused):
        names = {*inside, *files}
        if _is_export(folder, files):
            inside.clear()
            continue
        if mark := next(((folder, r, p) for p, c in classes.items() if (r := c.root_of(folder, names, top))), None):
            marked.append(mark)
            inside.clear()
            continue
        remains += [(folder, r, p) for p, c in classes.items() if (r := c.remains_of(folder, names, top))]
        # By name: the last one is entered first.
        inside.reverse()
    found: dict[Path, str] = {}
    for root, platform in _own_roots(marked, {root for _, root, _ in marked}):
        found.setdefault(root, platform)
    complete = set(found)
    for root, platform in sorted(_own_roots(remains, complete)):
        # Files inside of a sample belong to it, those above several are nobody's.
        if not any(root.is_relative_to(known) for known in found) and not any(known.is_relative_to(root) for known in complete):
            found[root] = platform
    return [(found[root], root) for root in sorted(found)]


def _own_roots(marks: list[tuple[Path, Path, str]], roots: set[Path]) -> Iterator[tuple[Path, str]]:
    """(root, platform) of (folder, root, platform): the folder itself where the root holds one of `roots`, whose images were taken for its own."""
    for folder, root, platform in marks:
        shared = any(other != root and other.is_relative_to(root) for other in roots)
        yield folder if shared else root, platform


def _is_export(folder: Path, files: list[str]) -> bool:
    for name in files:
        if _EXPORTED.fullmatch(name):
            try:
                columns = set(tables.header(folder / name))
            except InputError:
                continue
            if any(ours <= columns for ours in _OUR_COLUMNS):
                return True
    return False


def _name(root: Path, top: Path, taken: set[str]) -> str:
    """From the last two folders of the path, made unique."""
    parts = root.relative_to(top).parts or (root.resolve().name,)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", "_".join(parts[-2:])).strip("_.-")[:70] or "sample"
    if not re.fullmatch(NAME_PATTERN, name):
        name = f"s_{name}"
    unique, number = name, 2
    while unique.lower() in taken:
        unique, number = f"{name}_{number}", number + 1
    taken.add(unique.lower())
    return unique
