"""Whole files or none: everything is written under a temporary name beside its place and renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from istseg.errors import DiskFullError, InputError

_TEMPORARY = re.compile(r"\.(.+)\.([0-9]+)\.part(\.[^.]*)?")
"""What `_temporary` names: the name of the final path, the process, the suffix."""


@contextmanager
def scratch(path: str | Path) -> Iterator[Path]:
    """Give a temporary path (file or folder) beside `path`, removed when the block ends, and what a process that was killed left of the same path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path, os.getpid())
    remove(temporary)
    _remove_leftovers(path)
    try:
        yield temporary
    finally:
        remove(temporary)


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path (`scratch`) to write to; rename it to `path` when the block ends well.

    Raises
    ------
    DiskFullError
        If the disk is full while the block writes; libraries raise much that names no file, or the wrong one.
    """
    path = Path(path)
    with scratch(path) as temporary:
        try:
            yield temporary
            if path.is_dir():
                remove(path)
            os.replace(temporary, path)
        except (OSError, RuntimeError, DiskFullError) as error:
            if not _is_disk_full(error):
                raise
            remove(temporary)
            free = shutil.disk_usage(path.parent).free
            raise DiskFullError(
                f"{path}: cannot be written: No space left on device ({free / 1e6:.1f} MB are free after what was begun is removed), or no quota. "
                "Make room or use another folder, and run it again: nothing half is left."
            ) from None


def final(path: str | Path) -> Path:
    """The path that a temporary one, or one below it, becomes; any other path as it is."""
    return Path(*(match[1] if (match := _TEMPORARY.fullmatch(part)) else part for part in Path(path).parts))


def _temporary(path: Path, process: int) -> Path:
    """The suffix stays the last part of the name: some writers choose the format by it."""
    return path.parent / f".{path.name}.{process}.part{path.suffix}"


def _is_disk_full(error: BaseException | None) -> bool:
    """HDF5 and Arrow tell the number of the error in words."""
    while error is not None:
        if isinstance(error, DiskFullError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if re.search(rf"(?i)errno\W{{1,3}}({errno.ENOSPC}|{errno.EDQUOT})\b", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _remove_leftovers(path: Path) -> None:
    for found in map(path.parent.joinpath, os.listdir(path.parent)):
        match = _TEMPORARY.fullmatch(found.name)
        if match and found == _temporary(path, int(match[2])) and not _runs(int(match[2])):
            remove(found)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds; nothing where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write sorted, indented JSON; NaN and infinities are refused (ValueError): they are not JSON."""
    with whole(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=False, sort_keys=True) + "\n")


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    InputError
        If the file is missing, is not JSON or not an object; the message names `what` it should be.
    """
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it should be {what}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); it should be {what}. Was it cut off? Run the stage that makes it again.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be a JSON object, it is of the kind {type(value).__name__}; it should be {what}.")
    return value


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
