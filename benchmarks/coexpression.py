"""How long `istseg coexpression` takes: 1,000 genes and a million transcripts, at its defaults, two cores. Prints one row.

    python benchmarks/coexpression.py
    python benchmarks/coexpression.py --side-um 1400 --genes 5000

The tissue is simulated; each of its genes is dealt out among several names, so that the panel is as large as wanted and keeps its co-expression.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import finetuning
import numpy as np
import pandas as pd

from istseg.artifacts.sample import Sample
from istseg.cli import road, tools
from istseg.cli.options import Platform

RUN = "import sys; from istseg.cli import main; sys.argv[0] = 'istseg'; main()"


def converted(folder: Path, side_um: float, genes: int, per_um2: float, seed: int) -> Path:
    """A converted sample with `genes` names."""
    tools.simulate(out=folder / "sim", width_um=side_um, height_um=side_um, planes=1, stains="none", transcripts_per_um2=per_um2, empty_fraction=0.0, seed=seed)
    path = folder / "sim" / "raw" / finetuning.TRANSCRIPTS
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    named = table["gene"].to_numpy().astype(str)
    ours = ~np.char.startswith(np.char.lower(named), "blank")
    kinds, kind = np.unique(named[ours], return_inverse=True)
    # The names of the k-th gene are k, k + kinds, k + 2 kinds ...
    share = np.random.default_rng(seed).random(len(kind))
    named = named.astype(object)
    named[ours] = [f"Gene{number}" for number in kind + len(kinds) * (share * np.ceil((genes - kind) / len(kinds))).astype(int)]
    table["gene"] = named
    table.rename(columns={table.columns[0]: ""}).to_csv(path, index=False)
    road.convert(raw=folder / "sim" / "raw", sample="s", platform=Platform.merscope, out=folder / "convert", z_planes="0")
    return folder / "convert"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side-um", type=float, default=730.0)
    parser.add_argument("--transcripts", type=float, default=2.0, help="Per µm².")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="Keep the files here, and take a sample that is there already; default: a temporary folder.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        at = folder / "convert"
        if not (at / "sample.json").is_file():
            at = converted(folder, options.side_um, options.genes, options.transcripts, options.seed)
        sample = Sample.read(at / "sample.json")
        command = [sys.executable, "-c", RUN, "coexpression", "--sample-json", at / "sample.json", "--zarr", at / "s.zarr", "--out", folder / "coexpression"]
        begun = time.monotonic()
        process = subprocess.Popen([str(word) for word in command])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
    if status:
        raise SystemExit(f"istseg coexpression failed with the status {status}")
    print("| genes | transcripts | wall s | CPU s | peak MB |\n| --- | --- | --- | --- | --- |")
    print(f"| {len(sample.genes)} | {sample.transcripts['genes']} | {seconds:.1f} | {usage.ru_utime + usage.ru_stime:.1f} | {usage.ru_maxrss // 1024} |")
    print(finetuning.machine())


if __name__ == "__main__":
    main()
