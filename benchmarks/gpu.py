"""Speed on a GPU: network, masks, the whole stage segment with its files, training. Prints one table.

A GPU machine often has no more than torch and a few packages, so the tile is made elsewhere and handed over as a folder. There it is mirrored to a larger one
(one tile of `--mirror`² times the area, no ring: every window that is computed counts), and the stage works on `--copies` of it.

    python benchmarks/gpu.py --prepare results/gpu_tile        # anywhere
    python benchmarks/gpu.py --tile results/gpu_tile           # where the GPU is
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from istseg.artifacts.tiles import Tile
from istseg.network import weights
from istseg.network.dynamics import labels_from_field
from istseg.network.field import blend_windows
from istseg.network.flows import flow_targets
from istseg.network.inference import Predictor, open_device
from istseg.network.training import backward
from istseg.qc.matching import match_labels, scores
from istseg.stages import segment

MODELS = Path(__file__).resolve().parents[1] / "assets" / "models"
STAINS = "Cellbound1;Cellbound2;PolyT"
SIDE_UM = 300.0
CROP, CROPS = 320, 20


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


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Median wall time after one call that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def agreement(tile: Tile, model: Path, device: torch.device) -> tuple[float, int]:
    """AP at IoU 0.9 of the cells on the GPU against those of float32 on the CPU, on a tile, and the number of the latter."""
    found = []
    for place, precision in ((torch.device("cpu"), torch.float32), (device, None)):
        network, card = weights.load(model)
        predictor = Predictor(network, card, place, precision)
        found.append(segment.predict_tile(tile, predictor, segment.filter_of(card), 8)[0])
    return scores(match_labels(*found), (0.9,))["ap@0.9"], int(found[0].max())


def training_speed(model: Path, device: torch.device) -> dict[str, float]:
    """Crops per second of a step of training with 4 stains, painted beforehand, and of flow targets."""
    from istseg.pretrain.lessons import make_lesson
    from istseg.pretrain.randomness import Draw
    from istseg.pretrain.tissue import make_tissues

    draw = Draw(1, device)
    tissues = make_tissues(draw, 32, 640)
    lesson = make_lesson(draw, tissues, CROPS, 3, CROP)
    network, _ = weights.load(model)
    network.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-6)

    def step() -> None:
        backward(network, (lesson.stains, lesson.rna, lesson.maps, lesson.cell, lesson.teach), device.type)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    labels = tissues.labels.int()
    return {
        f"training step, {CROPS} crops of {CROP}²": CROPS / seconds_of(step, 10),
        f"painting such crops ({3 * CROPS} at once)": 3 * CROPS / seconds_of(lambda: make_lesson(draw, tissues, 3 * CROPS, 3, CROP), 5),
        "flow targets of 640²": len(labels) / seconds_of(lambda: flow_targets(labels), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepare", type=Path, help="Make the tile in this folder, and end.")
    parser.add_argument("--tile", type=Path, help="Folder of the tile.")
    parser.add_argument("--model", type=Path, default=next(iter(sorted(MODELS.glob("istseg-sim-*.safetensors"), reverse=True))))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--mirror", type=int, default=3)
    parser.add_argument("--copies", type=int, default=6)
    parser.add_argument("--scratch", help="Folder for the temporary files.")
    options = parser.parse_args()
    if options.prepare:
        prepare(options.prepare)
        return
    device = open_device("cuda")
    network, card = weights.load(options.model)
    predictor = Predictor(network, card, device)
    small = Tile.read(options.tile)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        tiles = [mirrored(small, options.mirror, Path(scratch) / "tiles", f"t{i}") for i in range(options.copies)]
        tile = tiles[0]
        n = len(tile.windows)
        grid = tile.window_grid
        boxes = [grid.window_box(*tile.windows[i % n]) for i in range(options.batch_size)]
        batch = torch.from_numpy(np.stack([predictor.inputs(tile, box) for box in boxes])).to(device)
        found = {"network": options.batch_size / seconds_of(lambda: predictor.predict(batch), 10)}
        for name, precision in (("network, bfloat16", torch.bfloat16), ("network, float32, plain", torch.float32)):
            other = Predictor(weights.load(options.model)[0], card, device, precision)
            found[name] = options.batch_size / seconds_of(lambda predict=other.predict: predict(batch), 5)
        field = blend_windows(tile, predictor.predict, batch_size=options.batch_size, inputs=predictor.inputs)
        filters = {"logit_threshold": card.logit_threshold, "min_flow": card.min_flow, "min_area_wpx": 12.8 / tile.working_um**2, "device": device}
        labels = labels_from_field(field, **filters)
        found[f"masks (a tile of {n} windows)"] = n / seconds_of(lambda: labels_from_field(field, **filters), 5)

        def stage(tiles: list[Tile]) -> None:
            segment.run(
                tiles=[t.folder for t in tiles], model=options.model, out=Path(scratch) / "segment", model_sha256=None, logit_threshold=None, min_flow=None,
                flow_error=0.9, min_cell_area_um2=12.8, flow_steps=60, batch_size=options.batch_size, device="cuda", precision="auto",
            )  # fmt: skip

        stage(tiles[:1])
        start = time.perf_counter()
        stage(tiles)
        found[f"stage segment, {len(tiles)} tiles, files and start included"] = len(tiles) * n / (time.perf_counter() - start)
        ap, cells = agreement(mirrored(small, 1, Path(scratch), "small"), options.model, device)
    found |= training_speed(options.model, device)
    print("| | per second |\n|---|---:|")
    for name, speed in found.items():
        print(f"| {name} | {speed:.0f} |")
    height, width = tile.shape
    print(f"\nWindows of 512 × 512 px, {len(tile.stains)} stains, batches of {options.batch_size}, {str(predictor.precision).removeprefix('torch.')}; ", end="")
    print(f"a tile has {height} × {width} px and {int(labels.max())} cells.")
    print(f"Cells against float32 on the CPU: AP@0.9 {ap:.4f} ({cells} cells).")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {len(os.sched_getaffinity(0))} CPU cores.")


if __name__ == "__main__":
    main()
