"""A real SLURM of one node, started and ended by the scripts beside this file, and what can befall it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Seconds that a run may take: on a machine that does much else at the same time they are many.
PATIENCE = 3000
# A test's cluster answers at once; the defaults of Nextflow are made for a busy one.
SITE = """
executor { pollInterval = '1s'; queueStatInterval = '2s'; exitReadTimeout = '10s'; submitRateLimit = null }
params { max_cpus = 2; max_memory = '6.GB' }
"""


@dataclass
class Cluster:
    """One that runs; all of it lies below `state`."""

    state: Path

    @property
    def env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.state / "slurm.conf")}

    def call(self, *command: str) -> str:
        return subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, text=True, check=True, timeout=30).stdout

    def jobs(self) -> list[str]:
        """A line of SLURM for each job that has ended."""
        path = self.state / "log" / "jobs.txt"
        return path.read_text().splitlines() if path.exists() else []

    def running(self) -> list[str]:
        return self.call("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()

    def first_job(self) -> str:
        """The first job, as soon as its script runs."""
        wait(lambda: self.running() and self.processes(self.running()[0]), "no job started")
        return self.running()[0]

    def processes(self, job: str) -> list[int]:
        listed = subprocess.run(["scontrol", "listpids", job], env={**os.environ, **self.env}, capture_output=True, text=True, timeout=30).stdout
        return [int(line.split()[0]) for line in listed.splitlines()[1:] if line.split()[0].isdigit()]

    def lose_node(self, job: str) -> None:
        """SIGKILL to slurmd, to the daemon of the job and to all of the job's processes: what a power cut leaves."""
        processes = self.processes(job)
        steps = {_parent(process) for process in processes} - set(processes)
        assert steps and all("slurmstepd" in _command(step) for step in steps), [_command(step) for step in steps]
        daemons = [line.split() for line in (self.state / "pids").read_text().splitlines()]
        slurmd = next(int(number) for name, number, _ in daemons if name == "slurmd")
        for process in (slurmd, *steps, *processes):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                assert process in processes

    def bring_node_back(self) -> None:
        node = socket.gethostname().partition(".")[0]
        subprocess.run(
            [HERE / "start.sh", self.state, "slurmd", "slurmd", "-D", "-f", self.env["SLURM_CONF"], "-N", node], env={**os.environ, **self.env}, check=True
        )


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[1])


def _command(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")


def wait(until: Callable[[], object], otherwise: str, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            pytest.fail(f"{otherwise} in {seconds:.0f} s", pytrace=False)
        time.sleep(0.3)


@contextmanager
def started(state: Path, env: dict[str, str]) -> Iterator[Cluster]:
    up = subprocess.run([HERE / "up.sh", state], capture_output=True, text=True, env={**os.environ, **env})
    if up.returncode:
        pytest.fail(up.stderr, pytrace=False)
    yield Cluster(state)
    subprocess.run([HERE / "down.sh", state], check=True)
    assert not (state / "pids").exists()


def run_on(slurm: Cluster, nextflow, *args: object, **options: object):
    """A run on the cluster, and a line of SLURM for each job that has ended."""
    (nextflow.folder / "site.config").write_text(SITE)
    return nextflow.run("-c", "site.config", *args, env=slurm.env, timeout=PATIENCE, **options), slurm.jobs()
