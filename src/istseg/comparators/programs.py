"""What preflight asks of installed programs."""

from __future__ import annotations

import os
from pathlib import Path


def missing(programs: Path | None, executable: str) -> list[str]:
    """Problem of a program that `make comparators` installs; none where it is there or has its container.

    Parameters
    ----------
    programs
        Folder of the programs; None with containers.
    executable
        Path below it, e.g. `proseg/bin/proseg`.
    """
    if programs is None or os.access(programs / executable, os.X_OK):
        return []
    name = executable.partition("/")[0]
    return [f"there is no {programs / executable}; install it with `make comparators` or `bin/setup_comparators {name}`, or use a profile with containers."]
