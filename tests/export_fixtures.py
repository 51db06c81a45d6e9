"""A small sample that went the whole road, and its export."""

from __future__ import annotations

import numpy as np

import result_fixtures as fx
from istseg.stages import assess, assign, export

CENTRES = np.array([[20, 20], [50, 30], [80, 70], [105, 50], [30, 80]], float)


def prepare(root, centres, **options):
    """A sample with its `convert` store, merged, assigned and assessed."""
    world = fx.make(root, centres, **options)
    fx.store(world)
    paths = world.paths
    assign.run(
        sample_json=paths["sample"], transcripts=paths["points"], cells=paths["cells"], segmentation="istseg", out=root / "istseg", labels=paths["labels"],
    )  # fmt: skip
    assess.run(
        sample_json=paths["sample"], tiles=paths["tiles"], counts=root / "istseg", cells=paths["cells"], nuclei=paths["nuclei"],
        thresholds=paths["thresholds"], segmentation="istseg", out=root / "assessed", umap_cells=0, crops=0,
    )  # fmt: skip
    return world


def go(world, out, *formats):
    export.run(
        sample_json=world.paths["sample"], zarr=world.paths["store"], merged=world.paths["merged"], assessed=world.root / "assessed",
        transcripts=world.root / "istseg" / "transcripts.parquet", out=out, formats=list(formats),
    )  # fmt: skip
