"""The demo on a real SLURM of one node. Only when asked for (`make test-slurm`): needs root and the Debian packages slurm-wlm and munge."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not os.environ.get("ISTSEG_TEST_SLURM"), reason="runs by `make test-slurm` only"),
]

# A test's cluster answers at once; the defaults of Nextflow are made for a busy one.
SITE = """
executor { pollInterval = '1s'; queueStatInterval = '2s'; exitReadTimeout = '10s'; submitRateLimit = null }
params { max_cpus = 2; max_memory = '6.GB' }
"""


@pytest.fixture
def slurm(tmp_path):
    state = tmp_path / "slurm"
    up = subprocess.run([HERE / "up.sh", state], capture_output=True, text=True)
    if up.returncode:
        pytest.fail(up.stderr, pytrace=False)
    yield {"SLURM_CONF": str(state / "slurm.conf"), "state": state}
    subprocess.run([HERE / "down.sh", state], check=True)
    assert not (state / "pids").exists()


def test_demo_on_slurm(nextflow, slurm):
    (nextflow.folder / "site.config").write_text(SITE)
    state = slurm.pop("state")
    os.environ.update(slurm)
    try:
        run = nextflow.run("-c", "site.config", "-profile", "demo,slurm", "--umap_cells", 0, "--exports", "none", timeout=1700)
    finally:
        os.environ.pop("SLURM_CONF")
    jobs = (state / "log" / "jobs.txt").read_text().splitlines()
    tasks = run.trace()
    assert len(jobs) >= len(tasks) > 10
    assert all("JobState=COMPLETED" in job for job in jobs), jobs
    assert {"demo_merscope/istseg/counts.h5ad", "demo_cosmx/istseg/counts.h5ad", "report.html"} <= run.files()
