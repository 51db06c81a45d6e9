"""What befalls jobs of a real SLURM: memory, time limits, lost nodes, scancel, a Nextflow that is killed. Only when asked for (`make test-slurm`)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from one_node import PATIENCE, SITE, Cluster, run_on, wait

from conftest import ROOT, Nextflow
from istseg import __version__

IMAGE = f"localhost/istseg-core:{__version__}"
CELLS = [f"{sample}/istseg.cells.parquet" for sample in ("demo_merscope", "demo_cosmx")]
pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.slow,
    pytest.mark.timeout(2 * PATIENCE),
    pytest.mark.skipif(not os.environ.get("ISTSEG_TEST_SLURM"), reason="runs by `make test-slurm` only"),
]
# One task under the pipeline's configuration. Below zero, the estimates take the margins away: 200 MB, and a minute where a test waits for its end.
# Elsewhere ten: SLURM may warn a job of one minute at once, before the test does anything to it.
TASK = """
process TASK {
    output:
    stdout

    script:
    %s
}
workflow { TASK() }
"""
SMALL = """
process {
    withName: 'TASK' { ext.memory = [start: -200]; ext.seconds = [start: %d] }
}
"""
ONE_MINUTE, TEN_MINUTES = -435, -300
WAITS_AT_FIRST = "task.attempt == 1 ? 'sleep 600' : 'true'"


def start(slurm: Cluster, nextflow: Nextflow, script: str, seconds: int = TEN_MINUTES) -> subprocess.CompletedProcess:
    """Nextflow with one task, on the cluster."""
    (nextflow.folder / "main.nf").write_text(TASK % script)
    (nextflow.folder / "site.config").write_text(SITE + SMALL % seconds)
    config = ("-c", ROOT / "nextflow.config", "-c", "site.config", "-profile", "slurm")
    return nextflow.call("run", "main.nf", *config, "--outdir", "out", env=slurm.env, timeout=PATIENCE)


def tries(nextflow: Nextflow) -> list[dict]:
    """Exit status (None: none was written), memory in MB and time in seconds that were asked for, of each try."""
    found = []
    for script in sorted((nextflow.folder / "work").glob("*/*/.command.run"), key=lambda path: path.stat().st_mtime):
        text = script.read_text()
        code = script.parent / ".exitcode"
        hours, minutes, seconds = map(int, re.search(r"#SBATCH -t (\d+):(\d+):(\d+)", text).groups())
        found.append({
            "exit": int(code.read_text()) if code.exists() and code.read_text() else None,
            "memory": int(re.search(r"#SBATCH --mem (\d+)M", text).group(1)),
            "time": 3600 * hours + 60 * minutes + seconds,
        })  # fmt: skip
    return found


def states(slurm: Cluster) -> list[str]:
    return [re.search(r"JobState=(\S+)", job).group(1) for job in slurm.jobs()]


@pytest.mark.parametrize("slurm", [{"ISTSEG_SLURM_MEMKILL": "1"}], indirect=True)
def test_a_job_beyond_its_memory_is_tried_again_with_twice_as_much(nextflow, slurm):
    """SLURM ends it, not the task itself: 300 MB in a job of 200 MB."""
    done = start(slurm, nextflow, '"python3 -c \'import time; x = bytearray(b\\"x\\") * 300_000_000; time.sleep(8)\'"')
    assert done.returncode == 0, done.stdout
    assert "1.batch exceeded memory limit" in (slurm.state / "log" / "slurmd.log").read_text()
    first, second = tries(nextflow)
    assert first["exit"] is None, "SLURM ends the whole job, the script that would note a status with it"
    assert (first["memory"], second["memory"]) == (200, 400)
    assert second["exit"] == 0


def test_a_job_beyond_its_time_is_tried_again_with_twice_as_much(nextflow, slurm):
    """SLURM warns jobs up to a minute before their end, and looks every half minute: 45 seconds are too long for a limit of one minute and fit in two."""
    done = start(slurm, nextflow, "'sleep 45'", ONE_MINUTE)
    assert done.returncode == 0, done.stdout
    first, second = tries(nextflow)
    assert first["exit"] in (140, 143)
    assert (first["time"], second["time"]) == (60, 120)
    assert (second["exit"], second["memory"]) == (0, first["memory"])


def test_a_job_that_is_cancelled_is_tried_again(nextflow, slurm):
    with ThreadPoolExecutor() as pool:
        run = pool.submit(start, slurm, nextflow, WAITS_AT_FIRST)
        slurm.call("scancel", slurm.first_job())
        done = run.result()
    assert done.returncode == 0, done.stdout
    assert states(slurm) == ["CANCELLED", "COMPLETED"]
    first, second = tries(nextflow)
    assert (first["exit"], second["exit"]) == (143, 0)
    assert first["memory"] == second["memory"]


def test_a_job_whose_node_is_lost_is_tried_again(nextflow, slurm):
    with ThreadPoolExecutor() as pool:
        run = pool.submit(start, slurm, nextflow, WAITS_AT_FIRST)
        slurm.lose_node(slurm.first_job())
        wait(lambda: states(slurm), "SLURM did not notice that the node is lost")
        time.sleep(5)
        slurm.bring_node_back()
        done = run.result()
    assert done.returncode == 0, done.stdout
    assert states(slurm) == ["NODE_FAIL", "COMPLETED"]
    first, second = tries(nextflow)
    assert (first["exit"], second["exit"]) == (None, 0)
    # It cannot be told from a job that SLURM ended as a whole, for memory or time.
    assert (2 * first["memory"], 2 * first["time"]) == (second["memory"], second["time"])


def test_nextflow_that_is_killed_goes_on_to_the_cells_of_a_local_run(nextflow, slurm):
    """Its jobs live on meanwhile, in folders that the second run does not use. The local run puts one tile into a task, the one on SLURM two."""
    small = ("--exports", "none", "--umap_cells", 0)
    (nextflow.folder / "site.config").write_text(SITE)
    log = nextflow.folder / "killed.txt"
    command = [nextflow.executable, "run", ROOT, "--outdir", "cluster", "-c", "site.config", "-profile", "test,slurm", *map(str, small)]
    with open(log, "w") as stream:
        options = {"cwd": nextflow.folder, "env": {**os.environ, **slurm.env, "NXF_ANSI_LOG": "false"}, "start_new_session": True}
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, **options)
        try:
            wait(lambda: "SEGMENT" in log.read_text() or started.poll() is not None, "no segment task")
            wait(slurm.running, "nothing runs")
        finally:
            os.killpg(started.pid, signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL, log.read_text()
    assert slurm.running(), "killed while jobs were running"
    assert not (nextflow.folder / "cluster" / "report.html").exists()

    again, jobs = run_on(slurm, nextflow, "-profile", "test,slurm", *small, "-resume", outdir="cluster")
    assert any(row["status"] == "CACHED" for row in again.trace()), "what had ended is not done again"
    assert again.record()["failures"] == []
    local = nextflow.run("-profile", "test", *small, "--tiles_per_task", 1, outdir="local", timeout=PATIENCE)
    of_slurm, of_local = ([row for row in run.trace() if row["process"] == "SEGMENT"] for run in (again, local))
    assert 0 < len(of_slurm) < len(of_local)
    for name in CELLS:
        assert (again.outdir / name).read_bytes() == (local.outdir / name).read_bytes(), name


def test_canary_in_podman_on_slurm(nextflow, slurm):
    if shutil.which("podman") is None:
        pytest.skip("there is no podman")
    if subprocess.run(["podman", "image", "exists", IMAGE]).returncode:
        pytest.skip(f"there is no image {IMAGE}; build it: docs/sites.md, Containers")
    run, jobs = run_on(slurm, nextflow, "-profile", "slurm,podman,canary,offline")
    assert "All well: the pipeline can run here." in run.text
    assert "NOT OK" not in run.text
    assert len(jobs) == 8, "seven checks, one of them twice"
    assert {row["container"] for row in run.trace()} == {IMAGE}
