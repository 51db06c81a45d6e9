"""The peer's half of `inference.py`: rna2seg 0.1.5 as its users run it, in its own environment. Not to be started by hand.

    python peer_rna2seg.py FOLDER THREADS CLOCK

FOLDER holds `image.npy` (uint16 (c, y, x), full resolution, nucleus stain first), `transcripts.parquet` (x, y in its pixels, gene), `peer.json` (names of the
stains, side of a patch) and `weights.pt`. Writes `peer_times.json`: seconds of each part, one entry per patch.
"""

import json
import resource
import sys
from importlib.metadata import version
from pathlib import Path

from peer import CLOCKS


def timed(module, name, seconds, now):
    """Let a function of a module note how long it takes."""
    inner = getattr(module, name)

    def outer(*args, **kwargs):
        start = now()
        result = inner(*args, **kwargs)
        seconds.append(now() - start)
        return result

    setattr(module, name, outer)


def main():
    """Command line."""
    import albumentations
    import numpy as np
    import pandas as pd
    import rna2seg.models as models
    import spatialdata
    import torch
    from rna2seg.dataset_zarr import RNA2segDataset, create_patch_rna2seg
    from spatialdata.models import Image2DModel, PointsModel

    folder, threads, now = Path(sys.argv[1]), int(sys.argv[2]), CLOCKS[sys.argv[3]]
    torch.set_num_threads(threads)
    facts = json.loads((folder / "peer.json").read_text())
    stains, side = facts["stains"], facts["side"]
    image = Image2DModel.parse(np.load(folder / "image.npy"), dims=("c", "y", "x"), c_coords=stains, scale_factors=[2])
    table = pd.read_parquet(folder / "transcripts.parquet")
    points = PointsModel.parse(table, coordinates={"x": "x", "y": "y"}, feature_key="gene")
    spatialdata.SpatialData(images={"stains": image}, points={"transcripts": points}).write(folder / "peer.zarr", overwrite=True)
    sdata = spatialdata.read_zarr(folder / "peer.zarr")
    create_patch_rna2seg(
        sdata, image_key="stains", points_key="transcripts", patch_width=side, patch_overlap=0, min_points_per_patch=1, folder_patch_rna2seg=folder / "patches"
    )
    dataset = RNA2segDataset(
        sdata=sdata,
        channels_dapi=stains[:1],
        channels_cellbound=stains[1:],
        shape_patch_key=f"sopa_patches_rna2seg_{side}_0",
        patch_width=side,
        patch_overlap=0,
        gene_column="gene",
        transform_resize=albumentations.Compose([albumentations.Resize(width=512, height=512, interpolation=0)]),
        patch_dir=folder / "patches",
    )
    model = models.RNA2seg("cpu", net="unet", pretrained_model=folder / "weights.pt")
    times = {"dataset item": [], "network": [], "masks": [], "polygons": []}
    timed(models, "compute_masks", times["masks"], now)
    timed(models.shapes, "geometrize", times["polygons"], now)
    timed(model, "forward", times["network"], now)
    whole, cells = [], 0
    for i in range(len(dataset)):
        start = now()
        item = dataset[i]
        times["dataset item"].append(now() - start)
        cells += len(model.run(folder / "peer_out", input_dict=item)[3])
        whole.append(now() - start)
    packages = ("rna2seg", "torch", "cellpose", "sopa", "numpy")
    record = {
        "seconds": {**times, "all": whole},
        "cells": cells,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {p: version(p) for p in packages},
    }
    (folder / "peer_times.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main()
