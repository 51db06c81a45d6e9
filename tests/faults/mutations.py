"""How the fuzz breaks files: bytes, fields of tables, entries of TIFF headers, and the files of a folder themselves. Everything is drawn from one generator."""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import struct
from pathlib import Path

NASTY = [
    *("", " ", "0", "-1", "-0.0", "nan", "NaN", "NA", "inf", "-inf", "1e308", "-1e308", "1e-320", "1e400", "9999999999", "1.5", "1,5", "1;5", "0x10", "1_000"),
    *(str(2**31), str(2**63), str(-(2**63) - 1), "9" * 400, "9" * 6000, "١٢٣", "²", "True", "None", "null"),
    *('"', '""', '"unclosed', "'", "`id`", "$(touch pwned)", "; touch pwned", "| cat", "&&", "\\", "\\n", "%s%n", "{x}", "${x}", "*", "?", "~"),
    *("../../etc", "/etc/passwd", "..", ".", "a/b", "-rf", "--help", "=1+1", "@x", "<script>alert(1)</script>", "</script>", "<img src=x onerror=alert(1)>"),
    *("\0", "a\0b", "\x1b[31m", "\x7f", "\u202e", "\u00e9", "\U0001f9ec", "\ufeff", "\ud7ff", "x" * 300, "x" * 140_000),
]
_NUMBERS = [0, 1, 2, 3, 7, 8, 16, 32, 255, 256, 257, 65535, 65536, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]


def sheet(rng: random.Random, text: str) -> bytes:
    """A samplesheet with one to three faults in its fields, lines or bytes."""
    data = text.encode()
    for _ in range(rng.randint(1, 3)):
        data = table(rng, data) if rng.random() < 0.75 else raw_bytes(rng, data)
    return data


def table(rng: random.Random, data: bytes) -> bytes:
    """A text table with a fault in its fields, columns or rows."""
    lines = data.split(b"\n")
    rows = [line.split(b",") for line in lines]
    kind = rng.choice(["field", "field", "field", "header", "drop", "double", "swap", "short", "long", "rows", "one row", "delimiter", "quote", "tail"])
    row = rng.randrange(len(rows))
    column = rng.randrange(len(rows[row]))
    if kind == "field":
        rows[row][column] = _nasty(rng)
    elif kind == "header":
        rows[0][rng.randrange(len(rows[0]))] = rng.choice([_nasty(rng), rng.choice(rows[0]), rng.choice(rows[0]).upper(), b" " + rng.choice(rows[0])])
    elif kind in ("drop", "double", "swap"):
        column, other = (rng.randrange(len(rows[0])) for _ in range(2))
        for cells in rows:
            if column < len(cells) and other < len(cells):
                if kind == "drop":
                    del cells[column]
                elif kind == "double":
                    cells.insert(other, cells[column])
                else:
                    cells[column], cells[other] = cells[other], cells[column]
    elif kind == "short":
        del rows[row][column:]
    elif kind == "long":
        rows[row][column:column] = [_nasty(rng)] * rng.randint(1, 40)
    elif kind == "rows":
        cut = sorted(rng.randrange(len(rows)) for _ in range(2))
        rows[cut[0] : cut[1]] = rng.choice([[], rows[cut[0] : cut[1]] * 2, rows[cut[0] : cut[1]][::-1]])
    elif kind == "one row":
        value = _nasty(rng)
        column = rng.randrange(len(rows[0]))
        for cells in rows[1:]:
            if column < len(cells):
                cells[column] = value
    elif kind == "delimiter":
        return data.replace(b",", rng.choice([b";", b"\t", b" ", b",,", b"|"]))
    elif kind == "quote":
        rows[row][column] = b'"' + rows[row][column]
    else:
        rows.append([_nasty(rng) for _ in range(rng.randint(1, 12))])
    return rng.choice([b"\n"] * 8 + [b"\r\n", b"\r"]).join(b",".join(cells) for cells in rows)


def _nasty(rng: random.Random) -> bytes:
    if rng.random() < 0.05:
        return bytes(rng.randrange(256) for _ in range(rng.randint(1, 6)))
    return rng.choice(NASTY).encode()


def raw_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flipped, overwritten, lost, repeated and moved bytes."""
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randint(1, 40)))
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        # Headers and ends say more than pixels do.
        at = rng.choice([rng.randrange(len(out)), rng.randrange(min(len(out), 256)), len(out) - 1 - rng.randrange(min(len(out), 512))]) if out else 0
        size = rng.choice([1, 1, 2, 4, 8, rng.randint(1, 64), rng.randint(1, max(1, len(out) // 4))])
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + size] = bytes([rng.choice([0, 255, 0x7F, 0x80, 10, 44])]) * len(out[at : at + size])
        elif kind == 2:
            out[at : at + size] = bytes(rng.randrange(256) for _ in range(min(size, 64)))
        elif kind == 3:
            del out[at : at + size]
        elif kind == 4:
            out[at:at] = out[at : at + size]
        else:
            other = rng.randrange(len(out)) if out else 0
            out[at : at + size] = out[other : other + size]
    return bytes(out)


def truncated(rng: random.Random, data: bytes) -> bytes:
    """The first part of a file, as a copy that was cut off leaves it."""
    return data[: rng.choice([rng.randrange(len(data)), max(0, len(data) - rng.randint(1, 40))])] if data else data


def tiff_header(rng: random.Random, data: bytes) -> bytes:
    """One field of one entry of a TIFF directory: tag, type, count or value (sizes beyond all measure among them)."""
    if data[:4] != b"II*\0":
        return raw_bytes(rng, data)
    out = bytearray(data)
    directories, at = [], struct.unpack_from("<I", data, 4)[0]
    while 0 < at < len(data) - 2 and len(directories) < 8:
        directories.append(at)
        n = struct.unpack_from("<H", data, at)[0]
        at = struct.unpack_from("<I", data, at + 2 + 12 * n)[0] if at + 6 + 12 * n <= len(data) else 0
    start = rng.choice(directories)
    n = struct.unpack_from("<H", data, start)[0]
    for _ in range(rng.choice([1, 1, 2, 3])):
        entry = start + 2 + 12 * rng.randrange(n)
        field = rng.choice(["tag", "type", "count", "value", "value", "value", "next", "n"])
        number = rng.choice([*_NUMBERS, rng.randrange(len(data)), rng.randrange(1 << 32)])
        if field == "tag":
            struct.pack_into(
                "<H", out, entry, rng.choice([254, 256, 257, 258, 259, 262, 270, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 339, 347, 65000])
            )
        elif field == "type":
            struct.pack_into("<H", out, entry + 2, number % 20)
        elif field == "count":
            struct.pack_into("<I", out, entry + 4, number)
        elif field == "value":
            struct.pack_into("<I", out, entry + 8, number)
        elif field == "next" and start + 6 + 12 * n <= len(out):
            struct.pack_into("<I", out, start + 2 + 12 * n, rng.choice([start, number, directories[0]]))
        elif field == "n":
            struct.pack_into("<H", out, start, number % 65536)
    return bytes(out)


def text(rng: random.Random, data: bytes) -> bytes:
    """JSON or YAML with a value, name or bracket replaced, or nested beyond measure."""
    words = re.split(rb"([\s,:\[\]{}]+)", data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(words))
        deep = rng.choice([b"[", b'{"a":']) * rng.choice([3, 100_000])
        words[at] = rng.choice([_nasty(rng), b"null", b"[]", b"{}", b"[1]", b"true", b"NaN", b"1e999", b'"x"', deep, words[rng.randrange(len(words))]])
    return b"".join(words)


def gzipped(rng: random.Random, data: bytes) -> bytes:
    """A compressed table with a fault inside; whole as a gzip."""
    return gzip.compress(table(rng, gzip.decompress(data)), 1, mtime=0)


def of_file(rng: random.Random, path: Path, data: bytes) -> tuple[str, bytes]:
    """A broken form of a file that fits its kind, and what was done."""
    if rng.random() < 0.15:
        return "truncated", truncated(rng, data)
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff") and rng.random() < 0.7:
        return "tiff header", tiff_header(rng, data)
    if suffix in (".csv", ".txt") and rng.random() < 0.8:
        return "table", table(rng, data)
    if suffix in (".json", ".geojson", ".yaml") and rng.random() < 0.8:
        return "text", text(rng, data)
    if suffix == ".gz" and rng.random() < 0.8:
        return "table in gzip", gzipped(rng, data)
    return "bytes", raw_bytes(rng, data)


def of_folder(rng: random.Random, root: Path, path: Path) -> str:
    """Lose, empty, rename, double or replace a file by a folder or a link; gives what was done."""
    kind = rng.choice(["lost", "empty", "folder", "loop", "dangling", "renamed", "doubled", "other file", "fifo"])
    if kind == "doubled":
        shutil.copy(path, path.with_name(rng.choice(["S2_", "copy of ", "x"]) + path.name))
        return kind
    if kind == "other file":
        others = [p for p in root.rglob("*") if p.is_file() and p != path]
        path.write_bytes(rng.choice(sorted(others)).read_bytes())
        return kind
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(root / "no such file")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "renamed":
        digits = rng.choice(["_F00099", "_z77", "_z99999999999", "_F999999", "", ".old"])
        (path.with_name(path.stem + digits + path.suffix)).touch()
    return kind
