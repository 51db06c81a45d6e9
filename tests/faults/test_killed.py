"""SIGKILL at random moments of every writing stage, and of Nextflow: no half file is taken for whole; going on gives what an undisturbed run gives."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import undisturbed as roads

from conftest import ROOT, Nextflow

UNFINISHED = {"train": {"checkpoint.pt"}}
"""Whole files that a stage keeps only until it has finished."""
MOMENTS = [(stage, number) for number in range(2) for stage in roads.STAGES][:20]


def kill(road: roads.Road, stage: str, out: Path, moment: float) -> None:
    """Start a stage and end it with SIGKILL; `moment` is the share of its time of writing. Earlier and earlier where it ends before that."""
    while True:
        process = road.start(stage, out)
        roads.wait_for_writing(process, out)
        time.sleep(moment * road.writing[stage])
        process.kill()
        process.join()
        if process.exitcode:
            assert process.exitcode == -signal.SIGKILL
            return
        shutil.rmtree(out)
        moment /= 3


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "number"), MOMENTS)
def test_a_stage_that_is_killed(road, tmp_path, stage, number):
    out = tmp_path / stage
    kill(road, stage, out, random.Random(f"{stage} {number}").uniform(0, 0.6) if number else 0)
    undisturbed = road.content(road.folder / stage)
    left = {name: content for name, content in road.content(out).items() if name not in UNFINISHED.get(stage, set())}
    assert {name: undisturbed.get(name) == content for name, content in left.items() if undisturbed.get(name) != content} == {}
    assert left.keys() <= undisturbed.keys()

    code, words = road.run(stage, out)
    assert code == 0, words
    assert road.content(out) == undisturbed
    assert not [p for p in out.rglob("*") if roads.is_temporary(p.relative_to(out).as_posix())]


def _samples(nextflow: Nextflow) -> Path:
    for name in ("a", "b"):
        (nextflow.folder / f"raw_{name}").mkdir(exist_ok=True)
    return nextflow.samplesheet("a,merscope,raw_a", "b,merscope,raw_b")


@pytest.mark.slow
@pytest.mark.pipeline
def test_nextflow_that_is_killed_goes_on(nextflow):
    """The real Nextflow with stubs of the stages, killed with all its tasks. It notes a task that ended a moment later: the last ones may be done again."""
    arguments = ("--input", _samples(nextflow), "-stub-run", "--compare", "none", "--exports", "none")
    command = [str(nextflow.executable), "run", str(ROOT), "--outdir", "out", *map(str, arguments)]
    log = nextflow.folder / "killed.txt"
    with open(log, "w") as stream:
        options = {"cwd": nextflow.folder, "env": {**os.environ, "NXF_ANSI_LOG": "false"}, "start_new_session": True}
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, **options)
        while "TEACH" not in log.read_text() and started.poll() is None:
            time.sleep(0.05)
        time.sleep(3)
        os.killpg(started.pid, signal.SIGKILL)
        assert started.wait() != 0
    assert not (nextflow.folder / "out" / "report.html").exists()

    again = nextflow.run(*arguments, "-resume")
    assert any(row["status"] == "CACHED" for row in again.trace()), "what had ended is not done again"
    assert again.record()["failures"] == []
    assert {"report.html", *(f"{name}/istseg/counts.h5ad" for name in "ab"), *(f"{name}/merge.json" for name in "ab")} <= again.files()
