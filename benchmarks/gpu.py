"""Speed on a GPU: network, inputs, masks, the whole stage segment with its files, training. Prints one table, row by row as it is measured.

A GPU machine often has no more than torch and a few packages, so the tile is made elsewhere and handed over as a folder. There it is mirrored to a larger one
(one tile of `--mirror`² times the area, no ring: every window that is computed counts), and the stage works on `--copies` of it.

    python benchmarks/gpu.py --prepare results/gpu_tile        # anywhere
    python benchmarks/gpu.py --tile results/gpu_tile           # where the GPU is
    python benchmarks/gpu.py --tile results/gpu_tile --parts stage profile
    python benchmarks/gpu.py --tile results/gpu_tile --device cpu --mirror 1 --copies 2 --batch-size 2    # does the script work?
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from istseg.artifacts.files import read_json, write_json
from istseg.artifacts.labels import read_layers
from istseg.artifacts.tiles import Tile
from istseg.network import weights
from istseg.network.dynamics import labels_from_field
from istseg.network.field import blend_windows
from istseg.network.flows import flow_targets
from istseg.network.inference import Predictor, open_device
from istseg.network.loading import DeviceTile, load
from istseg.network.training import backward
from istseg.qc.matching import match_labels, scores

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "assets" / "models" / "istseg-sim-v2.safetensors"
STAINS = "Cellbound1;Cellbound2;PolyT"
SIDE_UM = 300.0
CROP, CROPS = 320, 20

Rows = Iterator[tuple[str, float]]
"""What, how many of it per second."""


def prepare(folder: Path) -> None:
    """Simulate a sample of one tile and copy the tile."""
    sys.path.insert(0, str(Path(__file__).parent))
    from finetuning import make

    with tempfile.TemporaryDirectory() as scratch:
        sample = make(Path(scratch), argparse.Namespace(size_um=SIDE_UM, transcripts=1.0), 3, 0.0, 0.3, STAINS)
        shutil.copytree(sample.tile.folder, folder)


def mirrored(tile: Tile, times: int, folder: Path, name: str) -> Tile:
    """A tile of times² the area, without ring: even copies are turned over, so that cells at the seams are whole."""
    stains = np.concatenate([tile.raw_stains()[..., :: 1 - 2 * (i % 2)] for i in range(times)], 2)
    stains = np.concatenate([stains[:, :: 1 - 2 * (i % 2)] for i in range(times)], 1)
    height, width = tile.shape
    table = tile.transcripts()
    y, x = table["y_wpx"] - tile.region[0], table["x_wpx"] - tile.region[1]
    parts = [
        table.assign(y_wpx=i * height + (y if i % 2 == 0 else height - y - 1e-3), x_wpx=j * width + (x if j % 2 == 0 else width - x - 1e-3))
        for i in range(times)
        for j in range(times)
    ]
    whole = (0, 0, height * times, width * times)
    large = replace(tile, tile_id=name, grid=tile.grid | {"height": whole[2], "width": whole[3]}, core=whole, region=whole, windows=[], ring_windows=[])
    rows, columns = large.window_grid.shape
    large.windows = [(i, j) for i in range(rows) for j in range(columns)]
    large.write(folder / name, stains, pd.concat(parts, ignore_index=True), tile.sample_genes())
    return Tile.read(folder / name)


def copied(tile: Tile, folder: Path, name: str) -> Tile:
    """The same tile under another name; arrays and transcripts are the same files."""
    (folder / name).mkdir()
    for path in tile.folder.iterdir():
        if path.name != "tile.json":
            os.link(path, folder / name / path.name)
    write_json(folder / name / "tile.json", read_json(tile.folder / "tile.json", "tile") | {"tile_id": name})
    return Tile.read(folder / name)


class Bench:
    """What the parts share. Each part yields its rows."""

    def __init__(self, options: argparse.Namespace, scratch: Path):
        self.options, self.scratch = options, scratch
        self.device = open_device(options.device)
        network, self.card = weights.load(MODEL)
        self.predictor = Predictor(network, self.card, self.device)
        self.small = Tile.read(options.tile)
        self.tile = mirrored(self.small, options.mirror, scratch / "tiles", "t0")
        self.windows = sorted(self.tile.windows)
        self.filters = {
            "logit_threshold": self.card.logit_threshold, "min_flow": self.card.min_flow, "min_area_wpx": 12.8 / self.tile.working_um**2, "device": self.device,
        }  # fmt: skip

    def seconds_of(self, work: Callable[[], object], repeats: int) -> float:
        """Median wall time after one call that does not count."""
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:]))

    def boxes(self, n: int) -> list:
        return [self.tile.window_grid.window_box(*self.windows[i % len(self.windows)]) for i in range(n)]

    def loaded(self) -> DeviceTile:
        return DeviceTile(load(self.tile, self.card, pinned=self.device.type == "cuda"), self.card, self.device)

    def network(self) -> Rows:
        n = self.options.batch_size
        batch = self.loaded().windows(self.boxes(n))
        yield "network", n / self.seconds_of(lambda: self.predictor.predict(batch), 10)
        for name, precision in (("network, bfloat16", torch.bfloat16), ("network, float32, plain", torch.float32)):
            other = Predictor(weights.load(MODEL)[0], self.card, self.device, precision)
            yield name, n / self.seconds_of(lambda predict=other.predict: predict(batch), 5)

    def inputs(self) -> Rows:
        """Reading a tile (by a thread, beside the rest), and cutting its windows on the device, with the way there."""
        n, pinned = len(self.windows), self.device.type == "cuda"
        size = self.options.batch_size
        yield "reading a tile into memory, windows of it", n / self.seconds_of(lambda: load(self.tile, self.card, pinned), 5)
        tile = load(self.tile, self.card, pinned)

        def cut() -> None:
            there = DeviceTile(tile, self.card, self.device)
            for first in range(0, n, size):
                there.windows([self.tile.window_grid.window_box(*at) for at in self.windows[first : first + size]])

        yield "to the device, cut, normalised, RNA image", n / self.seconds_of(cut, 5)

    def masks(self) -> Rows:
        field = blend_windows(self.tile, self.predictor.predict, batch_size=self.options.batch_size, cut=self.loaded().windows)
        labels = labels_from_field(field, **self.filters)
        n = len(self.windows)
        yield f"masks (a tile of {n} windows, {int(labels.max())} cells)", n / self.seconds_of(lambda: labels_from_field(field, **self.filters), 5)

    def stage(self) -> Rows:
        """The command itself on copies of the tile, with all CPUs and with the four of a task of the pipeline."""
        copies = self.options.copies
        tiles = [self.tile, *(copied(self.tile, self.scratch / "tiles", f"t{i}") for i in range(1, copies))]
        windows = len(self.windows)
        for cpus in (len(os.sched_getaffinity(0)), 4):
            out = self.scratch / f"stage{cpus}"
            seconds = segment(tiles, out, self.options.device, self.options.batch_size, "auto", cpus)
            ends = sorted((out / tile.tile_id / "meta.json").stat().st_mtime for tile in tiles)
            what = f"segment, {copies} tiles, {cpus} CPUs"
            yield f"{what}: the whole command ({seconds:.1f} s)", copies * windows / seconds
            if copies > 1:
                yield f"{what}: once running (from the end of the first tile to that of the last)", (copies - 1) * windows / (ends[-1] - ends[0])
            methods = [read_json(out / tile.tile_id / "meta.json", "meta.json")["method"] for tile in tiles]
            for part in ("prediction", "finishing"):
                yield f"{what}: {part} of a tile, one process", windows / float(np.median([m[f"{part}_seconds"] for m in methods[1:] or methods]))

    def agreement(self) -> Rows:
        """The command's cells against those of float32 on the CPU, and against its own of another time."""
        tile = mirrored(self.small, 1, self.scratch, "small")
        found = []
        for name, device, precision in (("cpu", "cpu", "float32"), ("first", self.options.device, "auto"), ("second", self.options.device, "auto")):
            segment([tile], self.scratch / name, device, self.options.batch_size, precision)
            found.append(read_layers(self.scratch / name / tile.tile_id, ["cells"])["cells"])
        ap = scores(match_labels(found[0], found[1]), (0.9,))["ap@0.9"]
        same = "the same cells again in a second run" if np.array_equal(found[1], found[2]) else "OTHER CELLS IN A SECOND RUN"
        print(f"\nCells against float32 on the CPU: AP@0.9 {ap:.4f} ({int(found[0].max())} cells); {same}.\n", flush=True)
        yield from ()

    def lesson(self):
        """Painted crops as a batch of training, and the tissues."""
        from istseg.pretrain.lessons import make_lesson
        from istseg.pretrain.randomness import Draw
        from istseg.pretrain.tissue import make_tissues

        draw = Draw(1, self.device)
        tissues = make_tissues(draw, self.options.tissues, 640)
        return draw, tissues, make_lesson

    def step(self, frozen: bool, compiled: bool = False) -> Callable[[], None]:
        """A step of training on a batch of crops with 4 stains; `frozen`: with the statistics of batch norm as they are, as in fine-tuning."""
        draw, tissues, make_lesson = self.lesson()
        lesson = make_lesson(draw, tissues, self.options.crops, 3, CROP)
        network, _ = weights.load(MODEL)
        network.to(self.device, memory_format=torch.channels_last).train(not frozen)
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-6, fused=self.device.type == "cuda" or None)
        called = torch.compile(network) if compiled else network

        def step() -> None:
            backward(called, (lesson.stains, lesson.rna, lesson.maps, lesson.cell, lesson.teach), self.device.type)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 3.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        return step

    def training(self) -> Rows:
        n = self.options.crops
        yield f"training step, {n} crops of {CROP}²", n / self.seconds_of(self.step(frozen=False), 10)
        yield "the same with frozen statistics (fine-tuning)", n / self.seconds_of(self.step(frozen=True), 10)
        draw, tissues, make_lesson = self.lesson()
        labels = tissues.labels.int()
        yield f"painting such crops ({3 * n} at once)", 3 * n / self.seconds_of(lambda: make_lesson(draw, tissues, 3 * n, 3, CROP), 5)
        yield "flow targets of 640²", len(labels) / self.seconds_of(lambda: flow_targets(labels), 5)

    def compiled(self) -> Rows:
        """What `torch.compile` would give; istseg does not use it: it needs a compiler on the node."""
        n = self.options.crops
        for name, frozen in (("", False), (", frozen statistics", True)):
            begin = time.perf_counter()
            step = self.step(frozen, compiled=True)
            step()
            waited = time.perf_counter() - begin
            yield f"training step, torch.compile{name} (the first one took {waited:.0f} s)", n / self.seconds_of(step, 10)

    def profile(self) -> Rows:
        """Where the time of a training step and of a tile goes: two tables."""
        from torch.profiler import ProfilerActivity, profile

        from istseg.stages.segment import filter_of, predict_tile

        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        tile = load(self.tile, self.card, pinned=self.device.type == "cuda")
        works = {
            "training step": self.step(frozen=False),
            "training step, frozen statistics": self.step(frozen=True),
            "prediction of a tile": lambda: predict_tile(self.tile, self.predictor, filter_of(self.card), self.options.batch_size, tile),
        }
        for name, work in works.items():
            work()
            with profile(activities=kinds) as seen:
                work()
            by = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
            print(f"\n{name}:\n\n{seen.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=80)}\n", flush=True)
        yield from ()


PARTS = ("network", "inputs", "masks", "stage", "agreement", "training", "compiled", "profile")


def segment(tiles: list[Tile], out: Path, device: str, batch_size: int, precision: str, cpus: int | None = None) -> float:
    """Run the command; seconds of the wall clock. It starts as many threads and processes as it is told that it has CPUs."""
    named = [part for tile in tiles for part in ("--tile", str(tile.folder))]
    how = ["--model", str(MODEL), "--out", str(out), "--device", device, "--batch-size", str(batch_size), "--precision", precision]
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path} | ({"OMP_NUM_THREADS": str(cpus)} if cpus else {})
    begin = time.perf_counter()
    program = [sys.executable, "-c", "from istseg.cli import main; main()", "segment"]
    subprocess.run([*program, *named, *how], check=True, env=environment, stderr=sys.stdout)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepare", type=Path, help="Make the tile in this folder, and end.")
    parser.add_argument("--tile", type=Path, help="Folder of the tile.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part not in ("compiled", "profile")])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--mirror", type=int, default=3)
    parser.add_argument("--copies", type=int, default=16)
    parser.add_argument("--crops", type=int, default=CROPS)
    parser.add_argument("--tissues", type=int, default=32)
    parser.add_argument("--scratch", help="Folder for the temporary files.")
    options = parser.parse_args()
    if options.prepare:
        prepare(options.prepare)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        bench = Bench(options, Path(scratch))
        print("| | per second |\n|---|---:|", flush=True)
        for part in options.parts:
            for name, speed in getattr(bench, part)():
                print(f"| {name} | {speed:.0f} |" if speed >= 10 else f"| {name} | {speed:.2f} |", flush=True)
        height, width = bench.tile.shape
        precision = str(bench.predictor.precision).removeprefix("torch.")
    print(f"\nWindows of 512 × 512 px, {len(bench.tile.stains)} stains, batches of {options.batch_size}, {precision}; a tile has {height} × {width} px.")
    card = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU"
    print(f"{card}, torch {torch.__version__}, {len(os.sched_getaffinity(0))} CPU cores.")


if __name__ == "__main__":
    main()
