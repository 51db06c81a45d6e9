"""All writing stages on one small sample, each in a process that can be killed. Modules are loaded once, in a server that forks."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import report_fixtures
from network_fixtures import BASE_MODEL

STAGES = ("convert", "tile", "teach", "calibrate", "curate", "train", "segment", "merge", "assign", "assess", "regions", "export", "report")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["istseg.cli", "torch", "scanpy", "spatialdata", "sopa", *(f"istseg.stages.{stage}" for stage in STAGES)])
_VOLATILE = re.compile(r"seconds|_at$|^machine$|^host$|^created|^date|^pid$")
"""What two equal runs tell differently."""


def _child(arguments: list[str], log: str) -> None:
    """In the forked process: the real command line, its words in a file."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    from istseg import cli

    sys.argv = ["istseg", *arguments]
    cli.main()


@dataclass
class Road:
    """`folder/raw` is the sample, `folder/<stage>` what each stage wrote undisturbed."""

    folder: Path
    writing: dict[str, float] = field(default_factory=dict)
    """Stage → seconds from its first file to its end."""

    def arguments(self, stage: str, out: Path) -> list[str]:
        """Command line of a stage that reads what the stages before it wrote undisturbed, and writes to `out`."""
        at = self.folder
        facts, store = at / "convert" / "sample.json", at / "convert" / "s.zarr"
        points, tiles = store / "points" / "transcripts" / "points.parquet", at / "tile" / "tiles"
        limits, cells, nuclei = at / "calibrate" / "thresholds.json", at / "merge" / "istseg.cells.parquet", at / "merge" / "nuclei.parquet"
        every = [part for tile in sorted(p.parent for p in tiles.glob("*/tile.json")) for part in ("--tile", tile)]
        given = {
            "convert": ["--raw", at / "raw", "--sample", "s", "--platform", "merscope", "--z-planes", "0"],
            "tile": ["--sample-json", facts, "--zarr", store, "--tile-um", 60],
            "teach": every,
            "calibrate": ["--labels", at / "teach"],
            "curate": [*every, "--labels", at / "teach", "--thresholds", limits, "--patches"],
            "train": [
                "--patches",
                at / "curate" / "patches",
                "--base",
                BASE_MODEL,
                "--epochs",
                1,
                "--crop-wpx",
                64,
                "--holdout-fraction",
                0.5,
                "--batch-size",
                2,
            ],
            "segment": [*every, "--model", BASE_MODEL],
            "merge": ["--tiles-json", tiles / "tiles.json", "--cells", at / "segment", "--teacher", at / "teach", "--thresholds", limits],
            "assign": ["--sample-json", facts, "--transcripts", points, "--cells", cells, "--segmentation", "istseg", "--labels", at / "merge" / "labels.zarr"],
            "assess": ["--sample-json", facts, "--tiles", tiles, "--counts", at / "assign", "--cells", cells, "--nuclei", nuclei, "--thresholds", limits]
            + ["--segmentation", "istseg", "--umap-cells", 0, "--crops", 1],
            "regions": ["--tiles", tiles, "--nuclei", nuclei, "--cells", f"istseg={cells}", "--counts", at / "assess" / "counts.h5ad"],
            "export": ["--sample-json", facts, "--zarr", store, "--merged", at / "merge", "--assessed", at / "assess"]
            + ["--transcripts", at / "assign" / "transcripts.parquet", "--formats", "spatialdata,geojson,vizgen"],
            "report": ["--run-json", at / "run.json", "--results", at / "results"],
        }[stage]
        return [str(part) for part in ["--quiet", stage, *given, "--out", out]]

    def start(self, stage: str, out: Path, log: Path | None = None) -> multiprocessing.Process:
        """Start a stage; its words go to `log`, else to `<out>.log`."""
        process = _CONTEXT.Process(target=_child, args=(self.arguments(stage, out), str(log or f"{out}.log")))
        process.start()
        return process

    def run(self, stage: str, out: Path, log: Path | None = None) -> tuple[int, str]:
        """Run a stage to its end; exit code and words."""
        process = self.start(stage, out, log)
        began = wait_for_writing(process, out)
        process.join()
        self.writing.setdefault(stage, time.monotonic() - began)
        return process.exitcode, Path(log or f"{out}.log").read_text()

    def content(self, folder: Path) -> dict[str, bytes]:
        """Files that carry their final name, and what they hold; of JSON without what two equal runs tell differently."""
        found = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and not is_temporary(name):
                found[name] = _stable(path)
        return found


def wait_for_writing(process: multiprocessing.Process, out: Path) -> float:
    """Wait until a stage has begun to write below `out`, or has ended; the time of that."""
    while process.is_alive() and not (out.is_dir() and any(out.iterdir())):
        time.sleep(0.001)
    return time.monotonic()


def is_temporary(name: str) -> bool:
    """Whether a path lies in something that is still being written (`artifacts.files.whole`) or scratch."""
    return any(part.startswith(".") and ".part" in part for part in name.split("/"))


def _stable(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".json":
        return content
    return json.dumps(_without(json.loads(content)), sort_keys=True).encode()


def _without(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without(inner) for name, inner in value.items() if not _VOLATILE.search(name)}
    return [_without(inner) for inner in value] if isinstance(value, list) else value


def build(folder: Path) -> Road:
    """The sample and everything that undisturbed stages make of it."""
    road = Road(folder)
    from istseg.stages import simulate

    size = {"width_um": 110.0, "height_um": 90.0, "planes": 1, "stains": "PolyT", "transcripts_per_um2": 1.0, "empty_fraction": 0.0, "seed": 3}
    simulate.run(out=folder / "sim", platform="merscope", degraded_fraction=0.0, degraded_contour=0.5, generation="", **size)
    (folder / "sim" / "raw").rename(folder / "raw")
    report_fixtures.write_whole(folder / "results", "a", 0, n_cells=300, n_umap=100, side=100)
    report_fixtures.write_run(folder, ["a"])
    for stage in STAGES:
        code, words = road.run(stage, folder / stage)
        assert code == 0, f"{stage}: {words}"
    return road
