"""A disk that is full in every writing stage: a message with what and where, no half file; the stage finishes when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import undisturbed as roads

PAGE = 4096
pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of a megabyte; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root: a full disk is not tried here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.parametrize("stage", roads.STAGES)
def test_a_stage_on_a_full_disk(road, small_disk, stage):
    undisturbed = road.content(road.folder / stage)
    out = small_disk / stage
    # Room for the log beside the folder, and for half of what the stage writes; a page at the least.
    needed = sum(PAGE * -(-len(content) // PAGE) for content in undisturbed.values())
    resize(small_disk, 4 * PAGE + needed // 2 // PAGE * PAGE)
    if needed <= PAGE:
        (small_disk / "filler").write_bytes(bytes(4 * PAGE))

    log = small_disk.parent / "words"
    code, words = road.run(stage, out, log)
    assert code not in (0, 65), "neither done nor bad input: Nextflow tells and -resume goes on"
    (told,) = [line for line in words.splitlines() if line.startswith("ERROR: ")]
    assert "No space left on device" in told, words
    assert told.startswith(f"ERROR: {out}"), "it says where"
    left = road.content(out) if out.exists() else {}
    for name, content in left.items():
        assert name == "checkpoint.pt" or undisturbed[name] == content, f"{name} is no whole file"
    assert not [p for p in small_disk.rglob("*") if roads.is_temporary(p.relative_to(small_disk).as_posix())], "what it began takes no room"

    (small_disk / "filler").unlink(missing_ok=True)
    resize(small_disk, 1 << 28)
    code, words = road.run(stage, out, log)
    assert code == 0, words
    assert road.content(out) == undisturbed


def test_a_raw_folder_that_cannot_be_written(road, tmp_path):
    """A read-only mount, as of an archive: nothing is written beside the data."""
    raw = road.folder / "raw"
    if subprocess.run(["mount", "--bind", "-o", "ro", raw, raw], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        with pytest.raises(OSError, match="Read-only"):
            (raw / "x").touch()
        code, words = road.run("convert", tmp_path / "convert")
    finally:
        subprocess.run(["umount", "-l", raw], check=True)
    assert code == 0, words
    assert road.content(tmp_path / "convert") == road.content(road.folder / "convert")
