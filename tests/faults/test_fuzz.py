"""Some hundred inputs of the fuzz (`make fuzz` runs 20,000), and that it would see a fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def fuzz(*arguments: object, patch: str = "") -> subprocess.CompletedProcess:
    """The fuzz in a process of its own: it limits its address space. `patch` is run before it."""
    program = f"{patch}\nimport fuzz, sys\nsys.exit(fuzz.main())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE.parent), str(HERE)])}
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_broken_inputs_are_read_or_refused_in_plain_words():
    done = fuzz("--inputs", 600, "--seed", 7)
    assert done.returncode == 0, done.stderr
    for outcome in ("sheet refused", "folder refused", "folder converted", "list refused"):
        assert outcome in done.stdout


SHEET = "import istseg.samplesheet as s, fuzz, time; fuzz.SECONDS = 1; s._check_unique = lambda *a: "
TABLES = """
import pyarrow.csv as c
import istseg.raw.tables as t
t.line_end_warnings = lambda paths: []
open_csv = c.open_csv
c.open_csv = lambda source, **options: open_csv(source, parse_options=c.ParseOptions(invalid_row_handler=lambda row: "skip"), **options)
"""
FAULTS = {
    "another exception": (SHEET + "1 / 0", 20, "ZeroDivisionError"),
    "a hang": (SHEET + "time.sleep(60)", 20, "longer than 1 s"),
    "a file that was cut off": (TABLES, 400, "without a word"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_the_fuzz_sees(name):
    patch, inputs, sign = FAULTS[name]
    done = fuzz("--inputs", inputs, "--seed", 7, "--show", 1000, patch=patch)
    assert done.returncode == 1
    assert sign in done.stderr, done.stdout
