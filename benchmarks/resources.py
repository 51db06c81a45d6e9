"""What a task needs, by what it works on: runs the stages on simulated regions of several sizes, stains and densities, fits a model and prints both.

The model is linear with coefficients of at least 0: memory (MiB) and CPU seconds = start + sum of coefficient · measure; which measures, says `MODEL`, and what
they are `istseg.workload`. `conf/resources.config` holds the coefficients.

    python benchmarks/resources.py --save measured.json          # about 15 minutes of one core
    python benchmarks/resources.py --load measured.json          # the fit alone
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from stages import PIXEL_UM, commands, measure, simulate

# Side of the region in full-resolution px, stains, transcripts per µm².
RUNS = [
    (1536, "Cellbound1;PolyT", 1.0),
    (4096, "Cellbound1;PolyT", 1.0),
    (4096, "Cellbound1;Cellbound2;Cellbound3;PolyT", 1.0),
    (4096, "none", 4.0),
    (8192, "Cellbound1", 0.3),
    (8192, "Cellbound1;PolyT", 2.0),
]
MODEL = {
    "convert": (["row_kpx"], ["raw_mpx", "mtx"]),
    "tile": (["row_kpx"], ["stain_mpx", "mtx"]),
    "teach": (["tile_mpx"], ["tile_mpx"]),
    "calibrate": ([], ["mpx"]),
    "curate": (["tile_mpx", "tile_mtx"], ["tile_mpx", "tile_mtx"]),
    "segment": (["tile_mpx"], ["tile_mpx"]),
    "merge": (["mpx", "tile_plane_mpx"], ["mpx"]),
    "assign": (["row_kpx", "mtx"], ["mpx", "mtx"]),
    "assess": (["mpx", "mtx"], ["mpx", "mtx"]),
    "coexpression": (["mtx"], ["mtx"]),
    "compare": (["mpx", "mtx"], ["mpx", "mtx"]),
    "regions": (["mpx", "mtx"], ["mpx", "mtx"]),
    "export": (["mpx", "mtx"], ["stain_mpx", "mtx"]),
}
"""Stage → measures of the sample (`istseg.workload`) that its memory and its time go by."""


def run(size: int, stains: str, density: float, scratch: str | None) -> dict:
    """Measure every stage on one region: what it worked on, and stage → (MiB, CPU seconds)."""
    found = {}
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        folder = Path(temporary)
        measure(simulate(folder, size, stains, 1, "--transcripts-per-um2", str(density)))
        for stage in commands(folder, Path(), [], 750.0):
            tiles = sorted(p.parent for p in (folder / "tiles").glob("*/tile.json"))
            (command,) = commands(folder, folder / "sim" / "raw", tiles, 750.0)[stage]
            _, memory, cpu = measure(command)
            found[stage] = (memory, cpu)
            print(f"{size} px, {stains}, {density:g}/µm²: {stage} {memory:.0f} MiB, {cpu:.1f} s", file=sys.stderr, flush=True)
        sample = json.loads((folder / "convert" / "sample.json").read_text())
        boxes = [json.loads((tile / "tile.json").read_text()) for tile in tiles]
    area = [(y1 - y0) * (x1 - x0) / 1e6 for y0, x0, y1, x1 in (box["region"] for box in boxes)]
    channels, used = len(sample["stains"]), sum(stain["role"] != "other" for stain in sample["stains"])
    mpx, mtx = size**2 / 1e6, sample["transcripts"]["total"] / 1e6
    working = mpx * (PIXEL_UM / boxes[0]["working_um"]) ** 2
    measures = {
        "mpx": mpx, "stain_mpx": mpx * used, "raw_mpx": mpx * channels, "row_kpx": size * channels / 1e3, "mtx": mtx,
        "tile_mpx": max(area) * used, "tile_plane_mpx": max(area), "tile_mtx": mtx * max(area) / working,
    }  # fmt: skip
    return {"measures": measures, "tiles": sum(area) / max(area), "stages": found}


def fit(runs: list[dict], stage: str, what: int) -> tuple[dict[str, float], float]:
    """Coefficients of a stage's memory (`what` 0) or time (1), and the largest ratio of a measurement to the fit."""
    names = MODEL[stage][what]
    times = [r["tiles"] if what and stage in ("teach", "curate", "segment") else 1.0 for r in runs]
    design = np.array([[1.0, *(n * r["measures"][name] for name in names)] for r, n in zip(runs, times, strict=True)])
    measured = np.array([r["stages"][stage][what] for r in runs])
    coefficients, worst = line(design, measured)
    return dict(zip(["start", *names], coefficients.tolist(), strict=True)), worst


def line(design: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients of at least 0 of the columns of `design`, and the largest ratio of a measurement to the fit."""
    # Relative errors count: a small region's seconds matter as much as a large one's.
    coefficients, _ = nnls(design / measured[:, None], np.ones(len(measured)))
    return coefficients, float((measured / (design @ coefficients)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", help="JSON for the measurements.")
    parser.add_argument("--load", help="Measurements of an earlier run, instead of a new one.")
    parser.add_argument("--scratch", help="Folder for the temporary files.")
    options = parser.parse_args()
    runs = []
    if options.load:
        runs = json.loads(Path(options.load).read_text())
    for size, stains, density in [] if options.load else RUNS:
        runs.append(run(size, stains, density, options.scratch))
        if options.save:
            Path(options.save).write_text(json.dumps(runs, indent=2))
    heads = ("{mpx:.0f} Mpx, {row_kpx:.0f} kpx a row, {mtx:.2f} M transcripts: MiB | s".format(**r["measures"]) for r in runs)
    print("| stage | " + " | ".join(heads) + " |")
    print("|---|" + "---:|---:|" * len(runs))
    for stage in MODEL:
        print(f"| {stage} | " + " | ".join(f"{r['stages'][stage][0]:.0f} | {r['stages'][stage][1]:.1f}" for r in runs) + " |")
    print("\n| stage | MiB = | at most above | s = | at most above |\n|---|---|---:|---|---:|")
    for stage in MODEL:
        fits = [fit(runs, stage, what) for what in (0, 1)]
        cells = [f"{' + '.join(f'{c:.3g}' if n == 'start' else f'{c:.3g} {n}' for n, c in terms.items())} | {worst:.2f}" for terms, worst in fits]
        print(f"| {stage} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
