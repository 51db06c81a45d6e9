"""Weights for the comparator and teacher `cellpose`, trained on painted tissue by Cellpose's own training function: the published ones are not ours to give.

    python benchmarks/paper/cellpose_weights.py --out results/cellpose    # nuclei and cyto, with figures on held-out painted tissue
    python benchmarks/paper/run.py ... --weights nuclei=results/cellpose/nuclei --weights cyto=results/cellpose/cyto

`nuclei` sees the nucleus stain, `cyto` (the form of `cyto3`) one membrane stain with the nucleus stain beside it. Both start from the layers that they share
with a base model of ours, as our GeneSegNet did: some minutes of one core teach a network little from scratch. They stand for Cellpose as we could train it,
not for its authors' weights, which have seen thousands of real pictures.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import finetuning  # noqa: E402
import numpy as np  # noqa: E402
import tables  # noqa: E402
import torch  # noqa: E402
from cellpose import train, utils  # noqa: E402
from cellpose.models import CellposeModel  # noqa: E402

from istseg.artifacts.files import sha256  # noqa: E402
from istseg.network import weights  # noqa: E402
from istseg.network.dynamics import labels_from_field  # noqa: E402
from istseg.pretrain.evaluate import HELD_OUT_SEED  # noqa: E402
from istseg.pretrain.lessons import Crops, change_look, seen  # noqa: E402
from istseg.pretrain.paint import Scene, paint  # noqa: E402
from istseg.pretrain.randomness import Draw  # noqa: E402
from istseg.pretrain.tissue import NAMES, make_tissues  # noqa: E402
from istseg.qc.matching import match_labels, precision  # noqa: E402
from istseg.teachers.cellpose import FLOW_ERROR, LOGIT_THRESHOLD, STEPS, load, run_windows  # noqa: E402

ROLES = ("nuclei", "cyto")
DIAMETER_PX = 30.0
"""Mean diameter to which pictures are rescaled in training, Cellpose's default; the weights say it to whoever loads them."""
PIECE = 160
"""Side of the crops of the training, pixels of the network; Cellpose's default is 224."""
LEAST_PX = {"nuclei": 125.0, "cyto": 200.0}
"""Smallest area, working pixels: 8 and 12.8 µm², as the teacher has them."""
AT_ONCE = 4


@dataclass
class Picture:
    """`stains` (2, S, S) float32 as the network gets them, `labels` (S, S) int32 that it should give."""

    stains: np.ndarray
    labels: np.ndarray


@torch.no_grad()
def pictures(role: str, n: int, side: int, seed: int, held_out: bool = False) -> list[Picture]:
    """Painted tissue of all families, in turn; for training with a changed look (brightness, blur, holes, dropout)."""
    draw, found = Draw(seed), []
    for start in range(0, n, AT_ONCE):
        families = torch.arange(start, min(start + AT_ONCE, n)) % len(NAMES)
        tissues = make_tissues(draw, len(families), side, families)
        labels, nuclei = tissues.labels.long(), tissues.nuclei
        stains, _ = paint(draw, Scene(labels, nuclei > 0), int(role == "cyto"))
        stains = stains if held_out else change_look(draw, stains)
        shown = seen(Crops(labels, nuclei > 0, torch.empty(0)), stains)
        if role == "cyto":
            wanted = labels * shown
        else:
            # A cell's second nucleus is an object of its own.
            there = (nuclei > 0) & (stains[:, 0].abs().amax((1, 2)) > 0)[:, None, None]
            wanted = torch.where(there, 2 * labels + nuclei - 2, 0)
        planes = stains.flip(1) if role == "cyto" else torch.cat((stains, torch.zeros_like(stains)), 1)
        found += [Picture(p.numpy(), w.numpy().astype(np.int32)) for p, w in zip(planes.contiguous(), wanted, strict=True)]
    return found


def started(base: Path | None, seed: int) -> tuple[CellposeModel, int]:
    """A Cellpose 3 network with the layers of a base model that have the same name and shape, and the number of these tensors."""
    torch.manual_seed(seed)
    model = CellposeModel(pretrained_model=False, mkldnn=False, device=torch.device("cpu"), diam_mean=DIAMETER_PX)
    if base is None:
        return model, 0
    own, given = model.net.state_dict(), weights.load(base)[0].model.state_dict()
    same = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape and not k.startswith("diam_")}
    model.net.load_state_dict(own | same)
    return model, len(same)


def taught(role: str, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Train → weights file and facts."""
    begun = time.process_time()
    shown = pictures(role, options.pictures, options.side_wpx, options.seed)
    model, shared = started(options.base, options.seed)
    # A third faster on a CPU.
    model.net.to(memory_format=torch.channels_last)
    painted = time.process_time()
    options.out.mkdir(parents=True, exist_ok=True)
    path, losses, _ = train.train_seg(
        model.net, [p.stains for p in shown], [p.labels for p in shown], normalize=False, batch_size=options.batch_size, nimg_per_epoch=options.batch_size * 2,
        n_epochs=options.epochs, learning_rate=options.learning_rate, weight_decay=1e-2, bsize=PIECE, save_path=options.out, save_every=10,
        model_name=role,
    )  # fmt: skip
    kept = options.out / role
    os.replace(path, kept)
    facts = {"role": role, "steps": 2 * options.epochs, "tensors of the base": shared, "loss, first 10": float(losses[:10].mean())}
    facts |= {"loss, last 10": float(losses[-10:].mean()), "painting, CPU s": round(painted - begun), "training, CPU s": round(time.process_time() - painted)}
    return kept, facts


def judged(role: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """AP of stored weights on held-out painted tissue, through the teacher's functions; the diameter is the picture's median."""
    model = load(path, DIAMETER_PX, torch.device("cpu"))
    sums = {iou: np.zeros(3, int) for iou in (0.5, 0.75)}
    best = []
    for picture in pictures(role, options.held_out, options.side_wpx, HELD_OUT_SEED, held_out=True):
        rescale = float(model.diam_mean) / max(utils.diameters(picture.labels)[0], 5.0)
        field = run_windows(model, torch.from_numpy(picture.stains)[None], rescale, AT_ONCE)[0]
        cells = labels_from_field(field, LOGIT_THRESHOLD, flow_error=FLOW_ERROR, min_area_wpx=LEAST_PX[role], steps=STEPS)
        counts = np.bincount(picture.labels.ravel())
        overlap = match_labels(np.where((counts >= LEAST_PX[role])[picture.labels], picture.labels, 0), cells)
        best.append(overlap.best_iou())
        for iou, total in sums.items():
            total += (int((overlap.matches(iou) >= 0).sum()), len(overlap.truth_ids), len(overlap.predicted_ids))
    scores = {f"AP@{iou:g}": precision(hit, found - hit, true - hit) or 0.0 for iou, (hit, true, found) in sums.items()}
    return {"objects": int(sums[0.5][1])} | scores | {"mean best IoU": float(np.concatenate(best).mean())}


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--roles", type=lambda text: text.split(","), default=list(ROLES), help="Default: " + ",".join(ROLES))
    parser.add_argument("--base", type=Path, default=finetuning.BASE)
    parser.add_argument("--scratch", action="store_true", help="Random weights instead of the base's.")
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--side-wpx", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=160, help="Of two steps.")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--judge", action="store_true", help="Train nothing, measure what is there.")
    parser.add_argument("--held-out", type=int, default=16, help="Pictures.")
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.base = None if options.scratch else options.base
    if unknown := [role for role in options.roles if role not in ROLES]:
        parser.error(f"--roles {','.join(unknown)}: choose of {', '.join(ROLES)}")
    return options


def main(arguments: list[str]) -> None:
    options = options_of(arguments)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    rows = []
    for role in options.roles:
        path, facts = (options.out / role, {"role": role}) if options.judge else taught(role, options)
        rows.append(facts | judged(role, path, options) | {"sha256": sha256(path)})
    print(tables.write(options.out, "cellpose", rows))
    print(finetuning.machine())


if __name__ == "__main__":
    main(sys.argv[1:])
