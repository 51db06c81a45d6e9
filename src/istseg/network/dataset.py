"""Training patches: which ones train, validate and are held out, and how they reach the network.

Patches are windows that overlap their neighbours, so a split of the list would leak. Blocks of windows are split by position, and no pixel inside a validation
or held-out window teaches (nor validates, inside a held-out window): what is measured there was never learnt.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from istseg.artifacts.patches import Patch
from istseg.errors import InputError
from istseg.grid import Box
from istseg.network.augment import Example
from istseg.network.flows import flow_targets


class TooFewPatches(InputError):
    """Nothing can be learnt, or nothing judges it."""


MIN_PATCHES = 4
"""One to validate, one to hold out, two to learn from."""
BLOCK_SIDES = (4, 2, 1)
MIN_BLOCKS = 20
"""A block is as large as leaves so many of them: large blocks keep the parts apart, few blocks cannot give 5 % and 10 %."""


@dataclass(frozen=True, order=True)
class PatchRef:
    """Where a patch lies: in its sample and on disk."""

    sample: str
    window: tuple[int, int]
    path: Path
    overlap: int
    working_um: float
    n_membranes: int
    genes: tuple[str, ...] | None = None
    """Names of its gene map; None for a patch without."""


@dataclass(frozen=True)
class Split:
    """The patches by use, each list in order."""

    train: list[PatchRef]
    validation: list[PatchRef]
    holdout: list[PatchRef]


def find_patches(folders: Iterable[str | Path]) -> list[PatchRef]:
    """All patches below the folders, in order of sample and window; only their descriptions are read.

    Folders below whose name begins with a dot are skipped: a training that was killed leaves its flow targets in one.

    Raises
    ------
    InputError
        If a file is no patch, or two are of the same window of one sample.
    """
    problems, refs = [], {}
    for path in sorted({p.resolve() for folder in folders for p in Path(folder).rglob("*.npz") if not _hidden(p, Path(folder))}):
        try:
            with np.load(path, allow_pickle=False) as stored:
                meta = json.loads(str(stored["meta"]))
                # The same names come again in each patch.
                genes = tuple(map(sys.intern, meta["gene_names"])) if "genes" in stored else None
            ref = PatchRef(meta["sample"], tuple(meta["window"]), path, meta["overlap"], meta["working_um"], len(meta["stain_names"]) - 1, genes)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            problems.append(f"{path}: is not a training patch of the stage curate ({error}); give folders that hold patches only.")
            continue
        key = ref.sample, ref.window
        if key in refs:
            problems.append(
                f"{path}: is a second patch of window {ref.window} of the sample {ref.sample} (the first is {refs[key].path}); give each sample once."
            )
        refs[key] = ref
    if problems:
        raise InputError(problems)
    return sorted(refs.values())


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts[:-1])


def gene_counts(refs: Iterable[PatchRef]) -> Counter[str]:
    """How many pixels of the patches' gene maps show each gene."""
    shown: Counter[str] = Counter()
    for ref in refs:
        with np.load(ref.path, allow_pickle=False) as stored:
            numbers = np.bincount(stored["genes"].ravel(), minlength=1 + len(ref.genes or ()))
        shown.update(dict(zip(ref.genes or (), numbers[1:].tolist(), strict=True)))
    return shown


def thin(refs: Sequence[PatchRef], most: int) -> list[PatchRef]:
    """At most so many patches, evenly over all samples and their tissue."""
    if len(refs) <= most:
        return list(refs)
    return [refs[i] for i in np.linspace(0, len(refs) - 1, most).round().astype(int)]


def split(refs: Sequence[PatchRef], validation_fraction: float, holdout_fraction: float, seed: int) -> Split:
    """Split blocks of windows, every sample in proportion; at least one patch validates and one is held out.

    Raises
    ------
    TooFewPatches
        If there are fewer than `MIN_PATCHES` patches, or the fractions leave none to train.
    """
    if len(refs) < MIN_PATCHES:
        raise TooFewPatches(
            f"only {len(refs)} training patches were found, at least {MIN_PATCHES} are needed (one validates, one is held out for "
            "the decision, two train); take a larger area, lower min_objects, or run without fine-tuning."
        )
    blocks = _blocks(refs, seed)
    wanted_holdout = max(round(len(refs) * holdout_fraction), 1)
    wanted_validation = max(round(len(refs) * validation_fraction), 1)
    holdout, rest = _take(blocks, wanted_holdout)
    validation, rest = _take(rest, wanted_validation)
    train = sorted(ref for block in rest for ref in block)
    if not train:
        raise TooFewPatches(
            f"validation ({validation_fraction:g}) and held-out ({holdout_fraction:g}) patches leave none of the {len(refs)} to train; lower the fractions."
        )
    return Split(train, validation, holdout)


def _blocks(refs: Sequence[PatchRef], seed: int) -> list[list[PatchRef]]:
    """Blocks in a random order in which every stretch holds the samples in proportion."""
    for side in BLOCK_SIDES:
        by_place: dict[tuple[str, int, int], list[PatchRef]] = defaultdict(list)
        for ref in refs:
            by_place[ref.sample, ref.window[0] // side, ref.window[1] // side].append(ref)
        if len(by_place) >= MIN_BLOCKS:
            break
    of_sample: dict[str, list[tuple[str, tuple[str, int, int]]]] = defaultdict(list)
    for place in by_place:
        of_sample[place[0]].append((hashlib.sha256(repr((seed, *place)).encode()).hexdigest(), place))
    order = []
    for places in of_sample.values():
        order += [((rank + 0.5) / len(places), digest, place) for rank, (digest, place) in enumerate(sorted(places))]
    return [by_place[place] for _, _, place in sorted(order)]


def _take(blocks: list[list[PatchRef]], wanted: int) -> tuple[list[PatchRef], list[list[PatchRef]]]:
    """The first blocks, as near to the wanted number of patches as whole blocks come but at least one; the others."""
    taken: list[PatchRef] = []
    for i, block in enumerate(blocks):
        if taken and len(taken) + len(block) / 2 > wanted:
            return sorted(taken), blocks[i:]
        taken += block
    return sorted(taken), []


def window_box(ref: PatchRef, shape: tuple[int, int]) -> Box:
    """Box of the patch in working pixels of its sample."""
    (gy, gx), margin = ref.window, ref.overlap // 2
    y0, x0 = gy * (shape[0] - ref.overlap) - margin, gx * (shape[1] - ref.overlap) - margin
    return y0, x0, y0 + shape[0], x0 + shape[1]


def outside(ref: PatchRef, shape: tuple[int, int], others: Sequence[PatchRef]) -> np.ndarray:
    """Bool (y, x) of a patch: pixels that lie in none of the other patches' windows."""
    y0, x0, y1, x1 = window_box(ref, shape)
    free = np.ones(shape, bool)
    for other in others:
        if other.sample != ref.sample:
            continue
        oy0, ox0, oy1, ox1 = window_box(other, shape)
        free[max(oy0 - y0, 0) : max(min(oy1, y1) - y0, 0), max(ox0 - x0, 0) : max(min(ox1, x1) - x0, 0)] = False
    return free


class PatchStore:
    """Examples of patches with their flow targets, kept on disk so that memory does not grow with their number.

    Parameters
    ----------
    folder
        Work folder; targets are computed once and kept there.
    device
        Where flow targets are computed.
    genes
        Of a model with gene colours: the examples hold gene maps of these instead of counts.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", genes: Sequence[str] = ()):
        self.folder, self.device, self.genes = Path(folder), device, list(genes)
        self._items: list[tuple[PatchRef, tuple[int, int], tuple[Path, ...]]] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, ref: PatchRef, kept_free: Sequence[PatchRef] = ()) -> bool:
        """Compute and keep a patch; pixels inside the windows of `kept_free` do not teach. False when nothing of it may teach."""
        patch = Patch.read(ref.path)
        shape = patch.counts.shape
        if shape[0] % 8 or shape[1] % 8:
            raise InputError(f"{ref.path}: patches must have sides that are multiples of 8 pixels, it has {shape[0]} x {shape[1]}.")
        cut = np.stack([np.isin(labels, border_labels(labels)) & (labels > 0) for labels in patch.labels])
        # Half of a cut cell has its centre elsewhere: its flow would be wrong. The neighbouring window has it whole.
        teach = patch.teach & ~cut & outside(ref, shape, kept_free)
        chosen = [k for k in range(len(patch.labels)) if teach[k].any()]
        if not chosen:
            return False
        flows = flow_targets(torch.as_tensor(patch.labels[chosen].astype(np.int64), device=self.device))[0].cpu().numpy()
        names = []
        for flow, k in zip(flows, chosen, strict=True):
            target = self.folder / f"{len(self._items):05d}_target{k}.npz"
            np.savez(target, flow=flow.astype(np.float16), cell=patch.labels[k] > 0, teach=teach[k])
            names.append(target)
        image = self.folder / f"{len(self._items):05d}_image.npz"
        np.savez(image, stains=patch.normalised(), counts=patch.gene_map(self.genes) if self.genes else patch.counts)
        self._items.append((ref, shape, (image, *names)))
        return True

    def kind(self, i: int) -> tuple[int, int, int]:
        """(membrane stains, height, width) of item i: only items of one kind fit into one batch."""
        ref, shape, _ = self._items[i]
        return ref.n_membranes, *shape

    def n_targets(self, i: int) -> int:
        """Label images of item i that may teach."""
        return len(self._items[i][2]) - 1

    def example(self, i: int, target: int) -> Example:
        """Item i with one of its label images."""
        paths = self._items[i][2]
        with np.load(paths[0]) as image, np.load(paths[1 + target]) as labels:
            return Example(image["stains"], image["counts"].astype(np.float32), labels["flow"].astype(np.float32), labels["cell"], labels["teach"])


def border_labels(labels: np.ndarray) -> np.ndarray:
    """Labels that touch the border of a (y, x) label image."""
    edge = np.unique(np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1])))
    return edge[edge > 0]
