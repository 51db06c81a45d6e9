"""Make the report of a simulated cohort of eight samples through the whole pipeline, and open it in Chromium: size, first paint, console, screenshots.

Tissue of several qualities, one sample without membrane stain, one of a few cells, and one whose pictures are empty, so that it fails.

    python benchmarks/cohort.py --outdir results/cohort --pictures results/cohort/pictures
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nextflow_run
import numpy as np
import tifffile
from browser import look
from nextflow_run import ROOT, write_samplesheet

LIMIT_BYTES, LIMIT_PAINT_MS = 25e6, 1000


@dataclass(frozen=True)
class Planned:
    """A sample: its name, platform, side in µm, options of `istseg simulate`, and whether its pictures are empty."""

    name: str
    platform: str = "merscope"
    side_um: int = 170
    options: tuple[str, ...] = ()
    empty: bool = False


COHORT = (
    Planned("control_1"),
    Planned("control_2", options=("--stains", "Cellbound1;Cellbound2;PolyT")),
    Planned("broken_contours", options=("--degraded-fraction", "0.6")),
    Planned("few_transcripts", options=("--transcripts-per-um2", "0.08")),
    Planned("autofluorescent", options=("--autofluorescence", "0.7")),
    Planned("no_membrane", "cosmx", options=("--stains", "none")),
    Planned("few_cells", side_um=60),
    Planned("empty_images", side_um=60, empty=True),
)


def simulate(folder: Path) -> Path:
    """Write the raw folders that are not there yet; gives the samplesheet."""
    for seed, sample in enumerate(COHORT, 11):
        out = folder / sample.name
        if (out / "raw").is_dir():
            continue
        size = ("--width-um", str(sample.side_um), "--height-um", str(sample.side_um))
        command = ["istseg", "simulate", "--out", str(out), "--platform", sample.platform, *size, "--planes", "1", "--seed", str(seed), *sample.options]
        subprocess.run(command, check=True)
        if sample.empty:
            blank(out / "raw" / "images")
    sheet = folder / "samplesheet.csv"
    write_samplesheet(sheet, ((s.name, s.platform, folder / s.name / "raw") for s in COHORT))
    return sheet


def blank(images: Path) -> None:
    """Make every picture 0 everywhere, as an export that did not end leaves it: headers look well, the contents do not."""
    for path in images.glob("*.tif"):
        tifffile.imwrite(path, np.zeros_like(tifffile.imread(path)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outdir", type=Path, default=ROOT / "results" / "cohort")
    parser.add_argument("--pictures", type=Path, help="Folder for screenshots in light and dark.")
    parser.add_argument("extra", nargs="*", help="More arguments for `nextflow run`, after `--`.")
    options = parser.parse_args()
    outdir = options.outdir.resolve()
    sheet = simulate(outdir / "raw")
    start = time.monotonic()
    status = nextflow_run.run(sheet, outdir, ["-resume", *options.extra])
    if not status:
        sys.exit("the sample without pictures did not fail")
    report = outdir / "report.html"
    if not report.exists():
        sys.exit(status)
    print(f"pipeline: {time.monotonic() - start:.0f} s")
    seen = look(report, options.pictures)
    print(seen.table())
    if seen.size > LIMIT_BYTES or seen.paint_ms > LIMIT_PAINT_MS or seen.said:
        sys.exit("beyond the limits: 25 MB, first paint after 1 s, nothing in the console")


if __name__ == "__main__":
    main()
