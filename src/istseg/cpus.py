"""CPUs of this process."""

from __future__ import annotations

import os


def given_cpus() -> int:
    """CPUs that the task was given (`OMP_NUM_THREADS`, which the pipeline sets), else those that the process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))
