"""The command that runs all checks of a GPU: a part that fails, hangs or finds no time does not keep the others from running."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu_session


def test_a_part_that_fails_tells_why():
    outcome, output, _ = gpu_session.run(["-c", "import sys; print('so far'); sys.exit('it broke')"], 60)
    assert outcome == "FAILED with status 1"
    assert output.split() == ["so", "far", "it", "broke"]


@pytest.mark.slow
def test_a_part_that_hangs_is_stopped_with_all_that_it_started(tmp_path):
    lives = f"import pathlib, time\nwhile True: pathlib.Path({str(tmp_path / 'alive')!r}).write_text(str(time.time())); time.sleep(0.1)"
    child = f"import subprocess, sys, time; print('begun', flush=True); subprocess.Popen([sys.executable, '-c', {lives!r}]); time.sleep(600)"
    outcome, output, seconds = gpu_session.run(["-c", child], 15)
    assert outcome == "STOPPED after 15 s" and output == "begun\n" and seconds < 300
    time.sleep(1)
    last = (tmp_path / "alive").read_text()
    time.sleep(1)
    assert (tmp_path / "alive").read_text() == last


@pytest.fixture
def tile(tmp_path) -> Path:
    (tmp_path / "tile").mkdir()
    (tmp_path / "tile" / "tile.json").write_text("{}")
    return tmp_path / "tile"


def session(tile: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, gpu_session.__file__, "--tile", str(tile), "--out", str(out), "--device", "cpu", *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_the_others_run_when_one_fails(tile, tmp_path):
    """The tile is none: every part that reads it fails."""
    done = session(tile, tmp_path / "out", "--parts", "masks", "machine", "--patience", "20", "--minutes", "20")
    assert done.returncode == 1 and "not done: masks" in done.stderr
    report = (tmp_path / "out" / "session.md").read_text()
    assert "## masks: FAILED with status 1" in report and "tile.json" in report
    assert "## machine: done" in report and "torch" in report


def test_parts_for_which_no_time_is_left_are_named(tile, tmp_path):
    done = session(tile, tmp_path / "out", "--minutes", "0")
    assert done.returncode == 1
    assert (tmp_path / "out" / "session.md").read_text().count("NOT RUN: the time is over") == len(gpu_session.LIMITS_S)


def test_without_a_tile_it_says_how_to_make_one(tmp_path):
    done = session(tmp_path / "none", tmp_path / "out")
    assert done.returncode == 1 and "gpu.py --prepare" in done.stderr
    assert not (tmp_path / "out").exists()
