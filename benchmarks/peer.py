"""The peer rna2seg 0.1.5 in an environment of its own, which is made once with uv from `peer.lock` (about 9 GB), and scripts that run in it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(__file__).resolve().parents[1] / ".istseg"
HOME = Path(os.environ.get("ISTSEG_PEER") or STATE / "peer")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` counts the seconds of processors that the process used: what other work on the machine takes is not in it, but neither is waiting."""
LOCK = Path(__file__).with_name("peer.lock")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark beside the peer."""
    parser.add_argument("--stains", default="Cellbound1;Cellbound2;Cellbound3", help="Besides DAPI.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="Seconds of the wall clock or of the processors; `cpu` for busy machines.")
    parser.add_argument("--no-peer", action="store_true")


def python() -> Path:
    """Python of the peer's environment, made if it is not there. `ISTSEG_PEER` names another place for it."""
    stamp = HOME / "peer.lock"
    if stamp.is_file() and stamp.read_bytes() == LOCK.read_bytes():
        return HOME / "bin" / "python"
    # That of `make setup` where there is no other.
    uv = shutil.which("uv") or shutil.which("uv", path=str(STATE / "bootstrap" / "bin"))
    if uv is None:
        sys.exit("the peer's environment is made with uv, which is not there: run `make setup` or use --no-peer")
    print("making the peer's environment (once)", file=sys.stderr)
    subprocess.run([uv, "venv", "--clear", "-q", "--python", "3.11", str(HOME)], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", str(HOME / "bin" / "python"), "-r", str(LOCK)], check=True)
    shutil.copyfile(LOCK, stamp)
    return HOME / "bin" / "python"


def run(script: str, *arguments: object) -> None:
    """Run a script of this folder in the peer's environment; its output is shown only when it fails."""
    command = [str(python()), str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    if done.returncode:
        sys.exit(f"the peer failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
