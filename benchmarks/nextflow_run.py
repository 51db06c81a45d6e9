"""The pipeline as benchmarks run it: a samplesheet, Nextflow, the outcome."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def nextflow() -> str:
    """The launcher that `make setup` left: the one on PATH or the pinned one."""
    pinned = ROOT / "bin" / "nextflow"
    found = str(pinned) if pinned.exists() else shutil.which("nextflow")
    if not found:
        sys.exit("no Nextflow found; run `make setup` first")
    return found


def write_samplesheet(sheet: Path, samples: Iterable[tuple[str, str, Path]]) -> None:
    """Write (sample, platform, raw folder) of each row."""
    with open(sheet, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sample", "platform", "path"])
        writer.writerows(samples)


def run(sheet: Path, outdir: Path, extra: list[str]) -> int:
    """Run the pipeline with results and work folder below `outdir`; its exit status."""
    command = [nextflow(), "run", str(ROOT), "--input", str(sheet), "--outdir", str(outdir), "-work-dir", str(outdir / "work"), *extra]
    return subprocess.run(command, cwd=outdir).returncode
