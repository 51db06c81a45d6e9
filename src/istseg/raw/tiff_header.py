"""The directories of a TIFF, walked by hand before a library follows them: a damaged one may point at itself or ask for more memory than there is.

Layout: TIFF 6.0 (Adobe, 1992), sections 2 and 8; BigTIFF with 64-bit offsets.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

MAX_PAGES = 4096
_MAX_ENTRIES = 4096
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def problem(path: Path) -> str | None:
    """What is wrong with the directories of a file, as the rest of a sentence; None where they can be followed.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        try:
            return _walk(stream, size)
        except struct.error:
            return f"is cut off or damaged: its directory lies beyond its end ({size:,} bytes)"


def _walk(stream: BinaryIO, size: int) -> str | None:
    start = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        return "is not a TIFF"
    (version,) = struct.unpack_from(f"{order}H", start, 2)
    if version not in (42, 43):
        return f"is not a TIFF (version {version})"
    big = version == 43
    (at,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", start, 8 if big else 4)
    seen: set[int] = set()
    while at:
        if at in seen:
            return "is damaged: its directories point at each other in a circle"
        seen.add(at)
        if len(seen) > MAX_PAGES:
            return f"has more than {MAX_PAGES} pages"
        wrong, at = _directory(stream, at, size, order, big)
        if wrong:
            return wrong
    return None


def _directory(stream: BinaryIO, at: int, size: int, order: str, big: bool) -> tuple[str | None, int]:
    """What is wrong with the directory at an offset, and the offset of the next one (0: none)."""
    word, entry_bytes = ("Q", 20) if big else ("I", 12)
    n = _read(stream, at, f"{order}{'Q' if big else 'H'}", size)
    if n > _MAX_ENTRIES:
        return f"is damaged: a directory has {n:,} entries", 0
    first = at + (8 if big else 2)
    next_at = _read(stream, first + n * entry_bytes, f"{order}{word}", size)
    stream.seek(first)
    entries = stream.read(n * entry_bytes)
    for i in range(n):
        tag, kind, count, value = struct.unpack_from(f"{order}HH{word}{word}", entries, i * entry_bytes)
        length = count * _TYPE_BYTES.get(kind, 0)
        if length > (8 if big else 4) and value + length > size:
            return f"is cut off or damaged: its tag {tag} asks for {length:,} bytes at {value:,}, the file has {size:,}", 0
    return None, next_at


def _read(stream: BinaryIO, at: int, layout: str, size: int) -> int:
    if at > size:
        raise struct.error
    stream.seek(at)
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))[0]
