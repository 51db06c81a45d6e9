"""Speed of inference, from raw windows to polygons, beside the peer rna2seg 0.1.5 on the same windows: prints one table.

The sample is simulated; both run with our base model's weights (the peer reads them as its own .pt), on as many threads as there are cores. A window is
1200 × 1200 px of MERSCOPE (130 µm), the peer's patch. The peer is measured as its users run it, in an environment of its own that is made once with uv from
`peer.lock` (about 9 GB).

Our way from raw has two parts that are done for a whole tile at once and are counted here by area: the stage `tile` (resampling, transcripts into tiles, files)
and the rasterising of a tile's transcripts. The peer does both in its dataset item; what it prepares before (transcripts into patches) is not counted.

    python benchmarks/inference.py
    python benchmarks/inference.py --no-peer --windows 20
    python benchmarks/inference.py --clock cpu --threads 1        (on a machine that is busy with other work)
    python benchmarks/inference.py --device cuda --batch-size 32 --no-peer
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
import zarr

sys.path.insert(0, str(Path(__file__).parent))
from finetuning import machine, make
from peer import CLOCKS, add_options
from peer import run as run_peer

from istseg.artifacts.labels import describe
from istseg.artifacts.tiles import Tile
from istseg.grid import WINDOW_WPX, Box
from istseg.network import weights
from istseg.network.dynamics import labels_from_field, object_means
from istseg.network.inference import Predictor, open_device
from istseg.qc.matching import match_labels, scores
from istseg.stages import segment
from istseg.stages import tile as tile_stage

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "assets" / "models" / "istseg-sim-v2.safetensors"
SIDE_PX = 1200
PIXEL_UM = 0.108
TILE, RASTERISE = "tile (resampling, transcripts)", "rasterising transcripts"
RAW_TO_INPUT = (TILE, RASTERISE, "inputs")
MASKS_AND_POLYGONS = ("masks", "polygons")
REPEATS = 3
"""Of what is done for a whole tile."""


class Windows:
    """The windows of a tile that are the peer's patches, and the parts of the work on each."""

    def __init__(self, tile: Tile, per_side: int, device: str, precision: torch.dtype | None = None):
        self.tile, self.device = tile, open_device(device)
        network, self.card = weights.load(MODEL)
        self.predictor = Predictor(network, self.card, self.device, precision)
        wpx = SIDE_PX * PIXEL_UM / tile.working_um
        corners = [round(i * wpx) for i in range(per_side)]
        self.boxes: list[Box] = [(y, x, y + WINDOW_WPX, x + WINDOW_WPX) for y in corners for x in corners]

    def inputs(self, i: int) -> torch.Tensor:
        return torch.from_numpy(self.predictor.inputs(self.tile, self.boxes[i % len(self.boxes)]))

    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        field = self.predictor.predict(batch)
        self.wait()
        return field

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def labels(self, field: torch.Tensor) -> np.ndarray:
        area = 12.8 / self.tile.working_um**2
        return labels_from_field(field, self.card.logit_threshold, self.card.min_flow, 0.9, area, 60, self.device)

    def polygons(self, labels: np.ndarray, field: torch.Tensor, i: int) -> int:
        """Outlines and measures of the cells; gives their number."""
        box, grid = self.boxes[i % len(self.boxes)], self.tile.window_grid
        cells = torch.from_numpy(labels).to(field.device)
        means = (object_means(cells, values) for values in (torch.hypot(field[0], field[1]), field[2]))
        return len(describe("cells", labels, box, box, (grid.height, grid.width), *means))


def our_times(windows: Windows, count: int, batch_size: int, now: Callable[[], float]) -> tuple[dict[str, list[float]], int, dict[int, float]]:
    """Seconds per window of each part that is done window by window, number of cells of the distinct windows, resident memory in MiB after so many windows."""
    times: dict[str, list[float]] = {"inputs": [], "network": [], "masks": [], "polygons": []}
    cells, memory = 0, {}
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        clock = [now()]
        batch = torch.stack([windows.inputs(start + k) for k in range(size)])
        clock.append(now())
        fields = windows.predict(batch)
        clock.append(now())
        labels = [windows.labels(field) for field in fields]
        clock.append(now())
        found = [windows.polygons(image, field, start + k) for k, (image, field) in enumerate(zip(labels, fields, strict=True))]
        clock.append(now())
        for part, seconds in zip(times.values(), np.diff(clock), strict=True):
            part += [seconds / size] * size
        cells += sum(found[: max(len(windows.boxes) - start, 0)])
        for mark in sorted({min(50, count), count}):
            if start < mark <= start + size:
                memory[mark] = psutil.Process().memory_info().rss / 2**20
    return times, cells, memory


def agreement(windows: Windows) -> tuple[float, int]:
    """AP at IoU 0.9 of the cells of this device and precision against those of float32 on the CPU, and the number of the latter."""
    reference = Windows(windows.tile, 1, "cpu", torch.float32)
    found, truth, offset = [], [], 0
    for i in range(len(windows.boxes)):
        batch = windows.inputs(i)[None]
        a, b = windows.labels(windows.predict(batch)[0]), reference.labels(reference.predict(batch)[0])
        found.append(np.where(a > 0, a + offset, 0))
        truth.append(np.where(b > 0, b + offset, 0))
        offset += max(int(a.max()), int(b.max()))
    overlap = match_labels(np.concatenate(truth), np.concatenate(found))
    figures = scores(overlap, (0.9,))
    return figures["ap@0.9"], figures["n_truth"]


def areas(tile: Tile) -> float:
    """Area of the tile's region in windows of 1200 × 1200 px."""
    return tile.shape[0] * tile.shape[1] * (tile.working_um / (SIDE_PX * PIXEL_UM)) ** 2


def tile_times(folder: Path, tile: Tile, now: Callable[[], float]) -> dict[str, float]:
    """Seconds per window's area of what is done for the whole sample, which is one tile: the stage tile, and rasterising (never from the cache)."""
    times: dict[str, list[float]] = {TILE: [], RASTERISE: []}
    side_um = max(tile.shape) * tile.working_um
    for _ in range(REPEATS):
        start = now()
        tile_stage.run(
            sample_json=folder / "convert" / "sample.json", zarr=folder / "convert" / "s.zarr", out=folder / "again", working_um=tile.working_um,
            tile_um=side_um + 100, overlap_um=32.384, min_transcripts=3,
        )  # fmt: skip
        times[TILE].append(now() - start)
        start = now()
        Tile.read(tile.folder).transcript_counts()
        times[RASTERISE].append(now() - start)
    return {part: float(np.median(seconds)) / areas(tile) for part, seconds in times.items()}


def stage_seconds(tile: Tile, scratch: Path, device: str, batch_size: int, now: Callable[[], float]) -> float:
    """Seconds of the stage segment on the tile, files included."""
    start = now()
    segment.run(
        tiles=[tile.folder], model=MODEL, out=scratch / "segment", model_sha256=None, logit_threshold=None, min_flow=None, flow_error=0.9,
        min_cell_area_um2=12.8, flow_steps=60, batch_size=batch_size, device=device, precision="auto",
    )  # fmt: skip
    return now() - start


def peer_times(folder: Path, tile: Tile, options: argparse.Namespace) -> dict:
    """Give the peer the same region and weights, run it, read its record."""
    side = SIDE_PX * options.per_side
    work = folder / "peer"
    work.mkdir()
    np.save(work / "image.npy", zarr.open(str(folder / "convert" / "s.zarr"))["images/stains/s0"][:, :side, :side])
    table = tile.transcripts()
    scale = tile.working_um / PIXEL_UM
    table = table[~table["is_control"]].assign(x=table["x_wpx"] * scale, y=table["y_wpx"] * scale, gene=table["gene"].astype(str))
    table = table.loc[(table["x"] < side) & (table["y"] < side), ["x", "y", "gene"]].reset_index(drop=True)
    table.to_parquet(work / "transcripts.parquet")
    (work / "peer.json").write_text(json.dumps({"stains": tile.stains, "side": SIDE_PX}))
    torch.save(weights.load(MODEL)[0].state_dict(), work / "weights.pt")
    run_peer("peer_rna2seg.py", work, options.threads, options.clock)
    return json.loads((work / "peer_times.json").read_text())


def rows(ours: dict[str, list[float]], peer: dict[str, list[float]] | None) -> list[str]:
    """Lines of the table: medians of the parts and of what they add up to, in ms per window."""
    sums = {name: (name,) for name in ours}
    sums |= {"raw window to inputs": RAW_TO_INPUT, "masks and polygons": MASKS_AND_POLYGONS, "raw window to polygons": tuple(ours)}
    theirs = {
        "raw window to inputs": ["dataset item"], "network": ["network"], "masks": ["masks"], "polygons": ["polygons"],
        "masks and polygons": MASKS_AND_POLYGONS, "raw window to polygons": ["all"],
    }  # fmt: skip
    lines = []
    for name, parts in sums.items():
        mine = float(np.median(np.sum([ours[p] for p in parts], 0)))
        line = f"| {name} | {mine * 1e3:.0f} | {1 / mine:.1f} |"
        if peer and name in theirs:
            other = float(np.median(np.sum([peer[q] for q in theirs[name]], 0)))
            line += f" {other * 1e3:.0f} | {other / mine:.1f} |"
        elif peer:
            line += " | |"
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-side", type=int, default=3, help="Windows along a side of the sample.")
    parser.add_argument("--windows", type=int, default=120, help="Windows that we compute (the sample's, again and again), for times and memory.")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--scratch", help="Folder for the temporary files.")
    add_options(parser)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        # A little more than the windows, for the rounding of working pixels.
        size_um = options.per_side * SIDE_PX * PIXEL_UM + 2
        tile = make(folder, argparse.Namespace(size_um=size_um, transcripts=1.0), 3, 0.0, 0.3, options.stains).tile
        peer = None if options.no_peer else peer_times(folder, tile, options)
        torch.set_num_threads(options.threads)
        windows = Windows(tile, options.per_side, options.device)
        now = CLOCKS[options.clock]
        whole = tile_times(folder, tile, now)
        our_times(windows, 2 * options.batch_size, options.batch_size, now)
        times, cells, memory = our_times(windows, options.windows, options.batch_size, now)
        times = {part: [seconds] * options.windows for part, seconds in whole.items()} | times
        ap, n_truth = agreement(windows)
        per_area = stage_seconds(tile, folder, options.device, options.batch_size, now) / areas(tile)
    print("| per window | istseg, ms | windows/s |" + (" rna2seg, ms | times faster |" if peer else "") + "\n|---|---:|---:|" + ("---:|---:|" if peer else ""))
    print("\n".join(rows(times, peer and peer["seconds"])))
    precision = str(windows.predictor.precision).removeprefix("torch.")
    height, width = tile.shape
    print(
        f"\nMedians; {options.windows} windows of istseg in batches of {options.batch_size}, {len(tile.stains)} stains, {options.device}, {precision}, one part"
    )
    print("after the other; the stage overlaps them.")
    print(f"Cells of {precision} on {options.device} against float32 on the CPU: AP@0.9 {ap:.4f} ({n_truth} cells).")
    print(f"Whole road on one tile of {height} × {width} working px ({len(tile.windows)} overlapping windows), files included, per window's area: ", end="")
    print(f"tile {whole[TILE]:.2f} s + segment {per_area:.2f} s = {whole[TILE] + per_area:.2f} s ({options.clock} clock).")
    if memory:
        print("Resident memory after " + ", after ".join(f"{n} windows {mib:.0f} MiB" for n, mib in memory.items()) + ".")
    if peer:
        n = options.per_side**2
        print(f"Cells of the same {n} windows: istseg {cells}, rna2seg {peer['cells']}. Peak memory of rna2seg: {peer['peak_mib']:.0f} MiB.")
        print("Peer: " + ", ".join(f"{p} {v}" for p, v in peer["versions"].items()) + f"; {options.threads} threads.")
    if options.device == "cuda":
        print(torch.cuda.get_device_name())
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}; {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
