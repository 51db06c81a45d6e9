"""Whole files or none: everything is written under a temporary name beside its place and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from istseg.errors import InputError


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path (file or folder) to write to; rename it to `path` when the block ends well, remove it otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.part{path.suffix}"
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():
            _remove(path)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write sorted, indented JSON; NaN and infinities are refused (ValueError): they are not JSON."""
    with whole(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=False, sort_keys=True) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Read JSON.

    Raises
    ------
    InputError
        If the file is missing or is not JSON; the message names `what` it should be.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it should be {what}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); it should be {what}. Was it cut off? Run the stage that makes it again.") from None


def read_record(path: str | Path, stage: str, format_number: int) -> dict[str, Any]:
    """Read the JSON object of a stage that carries a format number.

    Raises
    ------
    InputError
        If it is missing, is not JSON, or has another format than this version reads.
    """
    raw = read_json(path, f"the {Path(path).name} of the stage {stage}")
    if raw.get("format") != format_number:
        raise InputError(f"{path}: format {raw.get('format')} is not {format_number}, which this version reads; run {stage} again with this version.")
    return raw


def sha256(path: str | Path) -> str:
    """Hex digest of a file, read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
