"""Folders below a raw folder, each entered once however links lead to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk(root: Path, max_depth: int, refused: Callable[[Path, OSError], None]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Go through a folder and those below it, so that links cannot loop.

    Parameters
    ----------
    root
        Where to begin.
    max_depth
        Levels below `root` that are entered.
    refused
        Called with a folder that cannot be listed, and why; the walk goes on unless it raises.

    Yields
    ------
    A folder, the names of its folders and those of its files, both sorted. The names of folders can be changed in place: those that are left are entered, the
    last one first.
    """
    seen: set[str] = set()
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            refused(folder, error)
            continue
        inside = [e.name for e in entries if _is_folder(e)]
        known = set(inside)
        yield folder, inside, [e.name for e in entries if e.name not in known]
        if depth < max_depth:
            pending += [(folder / name, depth + 1) for name in inside]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
