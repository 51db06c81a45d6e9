"""A small sample that went the whole road, and its export."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import shapely

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


def build(root):
    """An exported sample: the world of `prepare` with its `table` and `everything`, the counts of genes and control probes, cells × names."""
    world = prepare(root, CENTRES, nuclei=[fx.circle(*c, 2) for c in CENTRES[:4]])
    go(world, root / "out", "spatialdata", "geojson", "vizgen", "cosmx", "ometiff")
    world.table = anndata.read_h5ad(root / "assessed" / "counts.h5ad")
    counts = np.hstack([world.table.X.toarray(), world.table.obsm["controls"].toarray()])
    world.everything = pd.DataFrame(counts, index=world.table.obs_names, columns=[*fx.GENES, *fx.CONTROLS])
    return world


def iou(found, expected) -> np.ndarray:
    found, expected = np.array(list(found), object), np.array(list(expected), object)
    return shapely.area(shapely.intersection(found, expected)) / shapely.area(shapely.union(found, expected))


def peers(name: str, inside: str = "bin") -> Path:
    folder = Path(os.environ.get("ISTSEG_PEERS", "/nowhere")) / name / inside
    if not folder.is_dir():
        pytest.skip(f"no environment {name} (ISTSEG_PEERS, docs/exports.md)")
    return folder


def python(code: str, name: str, *arguments: object) -> dict:
    """Run code in a foreign environment; its last line is JSON."""
    done = subprocess.run([peers(name) / "python", "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
