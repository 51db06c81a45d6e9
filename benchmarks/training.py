"""Speed of training: target making and training step beside the peer rna2seg 0.1.5 on the same patches, and an epoch of fine-tuning. Prints one table.

The patches are those of a simulated sample: true cells as labels, 512 x 512 working pixels, which are 1200 x 1200 px of MERSCOPE. The peer makes its targets
at 1200 px, as it does in its training items, and trains as its users do (float32, statistics of the batch). Both run on as many threads as there are cores.
The step of fine-tuning (frozen statistics) has no counterpart there. What else a training item costs (reading, augmentation) is shown for ours only.

    python benchmarks/training.py
    python benchmarks/training.py --clock cpu --threads 1      # a machine that is busy
    python benchmarks/training.py --no-peer --device cuda --epoch-patches 500
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import finetuning
import peer
from peer import CLOCKS

from istseg.artifacts.patches import Patch
from istseg.network import training, weights
from istseg.network.augment import augment
from istseg.network.dataset import PatchStore, find_patches
from istseg.network.flows import flow_targets
from istseg.network.inference import open_device, precision_of

FULL_PX = 1200


def seconds_of(work: Callable[[], object], repeats: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Median time after one call that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return float(np.median(times[1:]))


def our_seconds(store: PatchStore, labels: np.ndarray, options: argparse.Namespace) -> dict[str, float]:
    """Seconds per patch of each part."""
    device = open_device(options.device)
    model, card = weights.load(options.base)
    model.to(device, memory_format=torch.channels_last)
    images = torch.as_tensor(labels.astype(np.int64), device=device)
    n = len(store)
    found = {"flow targets": seconds_of(lambda: flow_targets(images), options.repeats, device, CLOCKS[options.clock]) / len(images)}

    def batch() -> training.Batch:
        drawn = [augment(store.example(i % n, 0), np.random.default_rng(i), 512, 0.25) for i in range(options.batch_size)]
        return training.collate(drawn, card.image_form, options.device)

    found["reading and augmentation"] = seconds_of(batch, options.repeats, device, CLOCKS[options.clock]) / options.batch_size
    ready, optimiser = batch(), torch.optim.Adam(model.parameters(), lr=1e-6)
    for name, frozen in (("step, from scratch", False), ("step, fine-tuning", True)):
        model.train(not frozen)

        def step() -> None:
            training.backward(model, ready, options.device)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        found[name] = seconds_of(step, options.repeats, device, CLOCKS[options.clock]) / options.batch_size
    return found


def epoch_seconds(store: PatchStore, folder: Path, options: argparse.Namespace) -> float:
    """Time of an epoch of fine-tuning on `epoch_patches` patches, with validation on 5 % of them before and after it."""
    model, card = weights.load(options.base)
    many, few = _Repeated(store, options.epoch_patches), _Repeated(store, max(options.epoch_patches // 20, 1))
    recipe = training.make_recipe(False, 1, None, batch_size=options.batch_size, learning_rate=1e-5)
    clock = CLOCKS[options.clock]
    start = clock()
    training.fit(model, many, few, recipe, card.image_form, options.device, folder / "checkpoint.pt")
    return clock() - start


class _Repeated:
    """A store that gives its patches again and again."""

    def __init__(self, store: PatchStore, n: int):
        self.store, self.n = store, n

    def __len__(self) -> int:
        return self.n

    def kind(self, i: int) -> tuple[int, int, int]:
        return self.store.kind(i % len(self.store))

    def n_targets(self, i: int) -> int:
        return self.store.n_targets(i % len(self.store))

    def example(self, i: int, target: int) -> object:
        return self.store.example(i % len(self.store), target)


def peer_seconds(folder: Path, patches: list[Patch], store: PatchStore, options: argparse.Namespace) -> dict:
    """The peer's record for the same patches."""
    _, card = weights.load(options.base)
    stains, rna, _, _, teach = training.collate([store.example(i, 0) for i in range(len(store))], card.image_form, "cpu")
    labels = np.stack([cv2.resize(p.labels[0].astype(np.float32), (FULL_PX, FULL_PX), interpolation=cv2.INTER_NEAREST).astype(np.int32) for p in patches])
    np.savez(folder / "patches.npz", labels=labels, stains=stains.contiguous().numpy(), rna=rna.numpy(), teach=teach.numpy())
    peer.run("peer_training.py", folder, options.threads, options.batch_size, options.peer_repeats, options.clock)
    return json.loads((folder / "peer_times.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=finetuning.BASE)
    parser.add_argument("--patches", type=int, default=4, help="Different patches.")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-repeats", type=int, default=2)
    parser.add_argument("--epoch-patches", type=int, default=60)
    peer.add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sample = finetuning.make(folder, argparse.Namespace(size_um=300.0, transcripts=1.0), 3, 0.0, stains=options.stains)
        found = finetuning.curated(sample, folder / "true", sample.shapes("cells").geometry.to_numpy())
        refs = find_patches([found])[: options.patches]
        patches = [Patch.read(ref.path) for ref in refs]
        store = PatchStore(folder / "store", options.device)
        store.folder.mkdir()
        for ref in refs:
            store.add(ref)
        theirs = None if options.no_peer else peer_seconds(folder, patches, store, options)
        ours = our_seconds(store, np.stack([p.labels[0] for p in patches]), options)
        epoch = epoch_seconds(store, folder, options)
    same = {"flow targets": "targets", "step, from scratch": "step"}
    finetuning.show_head(("per patch", "istseg, ms", "rna2seg, ms", "times faster"))
    for name, seconds in ours.items():
        other = float(np.median(theirs["seconds"][same[name]])) if theirs and name in same else None
        finetuning.show((name, f"{seconds * 1e3:.0f}", f"{other * 1e3:.0f}" if other else "", f"{other / seconds:.1f}" if other else ""))
    precision = str(precision_of(torch.device(options.device))).removeprefix("torch.")
    cells = int(np.mean([len(np.unique(p.labels[0])) - 1 for p in patches]))
    print(
        f"\n{options.patches} patches of {cells} cells, {len(patches[0].stain_names)} stains, batches of {options.batch_size}, {options.device}, {precision}."
    )
    print(
        f"An epoch of fine-tuning on {options.epoch_patches} patches, {max(options.epoch_patches // 20, 1)} to validate before and after: {epoch:.0f} s. ",
        end="",
    )
    print(f"Peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB.")
    if theirs:
        print("Peer: " + ", ".join(f"{p} {v}" for p, v in theirs["versions"].items()) + f"; peak memory {theirs['peak_mib']:.0f} MiB.")
    if options.device == "cuda":
        print(torch.cuda.get_device_name())
    print(f"{options.clock} clock; {finetuning.machine()}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
