"""The demo on a real SLURM of one node. Only when asked for (`make test-slurm`): needs root and the Debian packages slurm-wlm and munge."""

from __future__ import annotations

import os
import re

import pytest
from one_node import PATIENCE, run_on

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.slow,
    pytest.mark.timeout(2 * PATIENCE),
    pytest.mark.skipif(not os.environ.get("ISTSEG_TEST_SLURM"), reason="runs by `make test-slurm` only"),
]


def test_canary_on_slurm(nextflow, slurm):
    run, jobs = run_on(slurm, nextflow, "-profile", "slurm,canary", "--queue", "main")
    assert "All well: the pipeline can run here." in run.text
    assert len(jobs) == 8, "seven checks, one of them twice"
    assert all("Partition=main" in job for job in jobs)


def test_gpus_and_arrays_on_slurm(nextflow, slurm):
    """Stubs, because there is nothing behind the GPUs; what SLURM was asked for is in the scripts of its jobs."""
    given = ("--gpu", "--gpu_type", "fake", "--array_size", 2, "--tiles_per_task", 1)
    run, jobs = run_on(slurm, nextflow, "-profile", "test,slurm", *given, "-stub-run", "--compare", "none", "--exports", "none")
    assert all("JobState=COMPLETED" in job for job in jobs), jobs
    scripts = [path.read_text() for path in (nextflow.folder / "work").glob("*/*/.command.run")]
    arrays = [text for text in scripts if re.search(r"^#SBATCH --array", text, re.M)]
    # Two samples of two tiles: of teach, curate and segment two arrays each.
    assert len(arrays) == 6
    assert sum("--gres=gpu:fake:1" in text for text in arrays) == 4, "teach and segment"
    assert "--gres" not in next(text for text in scripts if "MERGE" in text)
    assert len([row for row in run.trace() if row["process"] in ("TEACH", "CURATE", "SEGMENT")]) == 12


def test_demo_on_slurm(nextflow, slurm):
    run, jobs = run_on(slurm, nextflow, "-profile", "demo,slurm", "--umap_cells", 0, "--exports", "none")
    tasks = run.trace()
    assert len(jobs) >= len(tasks) > 10
    assert all("JobState=COMPLETED" in job for job in jobs), jobs
    assert {"demo_merscope/istseg/counts.h5ad", "demo_cosmx/istseg/counts.h5ad", "report.html"} <= run.files()
