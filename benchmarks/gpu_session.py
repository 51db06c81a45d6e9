"""All that is to be checked on a GPU, in one command: the tests that need one, and every row of benchmarks/gpu.py. Writes one file, part by part.

Each part is a process with a time limit of its own; when one fails or takes too long, the next one begins. Parts that no longer fit into `--minutes` are named
as not run. The tile is made beforehand, where all of istseg is installed; what the machine with the GPU needs is named in docs/performance.md.

    python benchmarks/gpu.py --prepare results/gpu_tile                                     # anywhere
    python benchmarks/gpu_session.py --tile results/gpu_tile --out results/gpu_session      # where the GPU is
    python benchmarks/gpu_session.py --tile results/gpu_tile --out /tmp/s --device cpu      # does the script work?
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOGETHER_S = 10
"""A part is not begun with less time left."""
LIMITS_S = {
    "machine": 30, "tests": 150, "stage": 120, "agreement": 90, "network": 60, "inputs": 45, "masks": 45, "training": 60, "profile": 75, "compiled": 150,
}  # fmt: skip
"""Part → seconds at most, in the order of their weight."""
SMALL = ["--mirror", "1", "--copies", "2", "--batch-size", "2", "--crops", "1", "--tissues", "1"]
"""Options of gpu.py on a CPU."""
MACHINE = """
import os, sys, torch
print(sys.version.split()[0], 'torch', torch.__version__, 'CUDA', torch.version.cuda, len(os.sched_getaffinity(0)), 'CPUs')
print(torch.cuda.get_device_properties(0) if torch.cuda.is_available() else 'torch sees no GPU')
"""


def command_of(part: str, options: argparse.Namespace) -> list[str]:
    """Arguments of Python for a part."""
    if part == "machine":
        return ["-c", MACHINE]
    if part == "tests":
        return ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--durations=5", str(ROOT / "tests" / "unit" / "test_gpu.py")]
    how = ["--tile", str(options.tile), "--device", options.device, "--parts", part, *(SMALL if options.device == "cpu" else [])]
    return [str(ROOT / "benchmarks" / "gpu.py"), *how]


def run(command: list[str], limit_s: float) -> tuple[str, str, float]:
    """Outcome in words, output, seconds. Whatever the command has started ends with it."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True, cwd=ROOT,
        )  # fmt: skip
        try:
            code = child.wait(limit_s)
            outcome = "done" if code == 0 else f"FAILED with status {code}"
        except subprocess.TimeoutExpired:
            outcome = f"STOPPED after {limit_s:.0f} s"
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output.seek(0)
        return outcome, output.read(), time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tile", type=Path, required=True, help="Folder that gpu.py --prepare has made.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for session.md.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--parts", nargs="+", choices=LIMITS_S, default=list(LIMITS_S))
    parser.add_argument("--minutes", type=float, default=8.0, help="For all parts together.")
    parser.add_argument("--patience", type=float, default=1.0, help="Factor on the limits of the parts.")
    options = parser.parse_args()
    if not (options.tile / "tile.json").is_file():
        sys.exit(f"{options.tile}: holds no tile; make it with `python benchmarks/gpu.py --prepare {options.tile}` where all of istseg is installed.")
    options.tile = options.tile.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    failed = []
    with open(options.out / "session.md", "w") as report:
        for part in options.parts:
            left = end - time.monotonic()
            if left < TOGETHER_S:
                outcome, output, seconds = "NOT RUN: the time is over", "", 0.0
            else:
                outcome, output, seconds = run(command_of(part, options), min(LIMITS_S[part] * options.patience, left))
            if outcome != "done":
                failed.append(part)
            text = f"## {part}: {outcome} ({seconds:.0f} s)\n\n{output}\n"
            report.write(text)
            report.flush()
            print(text, flush=True)
    sys.exit(f"not done: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
