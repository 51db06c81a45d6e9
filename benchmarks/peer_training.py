"""The peer's half of `training.py`: rna2seg 0.1.5 as its users train it, in its own environment. Not to be started by hand.

    python peer_training.py FOLDER THREADS BATCH REPEATS CLOCK

FOLDER holds `patches.npz`: `labels` int32 (n, 1200, 1200), `stains` float32 (n, c, 512, 512), `rna` float32 (n, 1, 512, 512), `teach` bool (n, 512, 512).
Writes `peer_times.json`.
"""

import json
import resource
import sys
from importlib.metadata import version
from pathlib import Path

from peer import CLOCKS


def main():
    """Command line."""
    import numpy as np
    import torch
    from cellpose.dynamics import labels_to_flows
    from rna2seg.models import RNA2seg
    from rna2seg.train import train_one_epoch

    folder, threads, batch, repeats = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    clock = CLOCKS[sys.argv[5]]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    patches = np.load(folder / "patches.npz")
    targets, flows = [], []
    for labels in patches["labels"]:
        start = clock()
        made = labels_to_flows([labels], files=None, redo_flows=False, device=torch.device("cpu"))[0]
        targets.append(clock() - start)
        at = (np.arange(512) + 0.5) * labels.shape[0] // 512
        flows.append(made[1:][:, at.astype(int)][:, :, at.astype(int)].astype(np.float32))
    n = len(flows)

    def items(ids):
        part = {"dapi": patches["stains"][ids][:, :1], "img_cellbound": patches["stains"][ids][:, 1:], "rna_img": patches["rna"][ids]}
        part |= {"mask_flow": np.stack([flows[i] for i in ids]), "mask_gradient": patches["teach"][ids].astype(np.float32)}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in part.items()}

    model = RNA2seg("cpu", net="unet", pretrained_model=None)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = []
    for _ in range(repeats):
        loader = [items([i % n for i in range(batch)])]
        start = clock()
        train_one_epoch("cpu", 0, model, loader, optimiser, best_val_loss=1e9, cellbound_prob=0.75)
        steps.append((clock() - start) / batch)
    record = {
        "seconds": {"targets": targets, "step": steps},
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {p: version(p) for p in ("rna2seg", "torch", "cellpose", "numpy")},
    }
    (folder / "peer_times.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
