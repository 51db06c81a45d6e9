"""Run the three real samples through Nextflow, without training, and print their figures: the tables of docs/real-data.md.

The samples are not in the repository: `ISTSEG_REAL_DATA` names their folder (default ../shared/data). Results and pictures go to `--outdir`.

    python benchmarks/real_data.py --outdir results/real --pictures results/real/pictures
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import nextflow_run
from browser import look
from nextflow_run import ROOT, write_samplesheet

from istseg.artifacts.metrics import Metrics

SAMPLES = [
    ("mouse_brain", "merscope", "merscope_mouse_brain/region_0"),
    ("mouse_liver", "merscope", "merscope_mouse_liver/region_0"),
    ("human_lung", "cosmx", "cosmx_human_lung/Lung12"),
]


def run(outdir: Path, data: Path, extra: list[str]) -> float:
    """Run the pipeline; return its wall time in s."""
    outdir.mkdir(parents=True, exist_ok=True)
    sheet = outdir / "samplesheet.csv"
    write_samplesheet(sheet, ((name, platform, data / path) for name, platform, path in SAMPLES))
    start = time.monotonic()
    if status := nextflow_run.run(sheet, outdir, extra):
        sys.exit(status)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outdir", type=Path, default=ROOT / "results" / "real")
    parser.add_argument("--pictures", type=Path, help="Folder for screenshots of the report in light and dark.")
    parser.add_argument("extra", nargs="*", help="More arguments for `nextflow run`, after `--`.")
    options = parser.parse_args()
    data = Path(os.environ.get("ISTSEG_REAL_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not data.is_dir():
        sys.exit(f"{data}: the real samples are not here; set ISTSEG_REAL_DATA to their folder")
    outdir = options.outdir.resolve()
    first = run(outdir, data, options.extra)
    again = run(outdir, data, ["-resume", *options.extra])

    print(
        "\n| sample | segmentation | cells | nuclei in one cell "
        "| cells without nucleus | spurious | inconsistent | transcripts in cells | median transcripts | median area, µm² |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    share = lambda value: "–" if value is None else f"{value:.3f}"  # noqa: E731
    for name, _, _ in SAMPLES:
        for path in sorted((outdir / name).rglob("metrics.json")):
            m = Metrics.read(path)
            median = lambda what, m=m: f"{m.quantiles[what]['median']:.0f}" if what in m.quantiles else "–"  # noqa: E731
            print(
                f"| {name} | {m.segmentation} | {m.n_cells} | {m.nuclei['in_one_cell']} of {m.nuclei['total']} | {share(m.flags['without_nucleus_rate'])} "
                f"| {share(m.flags['spurious_rate'])} | {share(m.flags['inconsistent_rate'])} | {share(m.transcripts['fraction_in_cells'])} "
                f"| {median('n_transcripts')} | {median('area_um2')} |"
            )
    report = json.loads((outdir / "report.json").read_text())
    print("\n| sample | stain | edge blur, µm | out of focus | squares |\n|---|---|---:|---:|---:|")
    for sample in report["samples"]:
        for stain in sample["tiles"]["stains"]:
            focus = stain["focus"]
            print(f"| {sample['sample']} | {stain['name']} | {focus['blur_um']:.2f} | {share(focus['out_of_focus'])} | {focus['n_squares']} |")
    for model in report["models"]:
        print(f"\nModel {model['name']}, sha256 {model['sha256']}.")
    print(f"All three: {first:.0f} s; again with -resume: {again:.0f} s.\n")
    print(look(outdir / "report.html", options.pictures).table())


if __name__ == "__main__":
    main()
