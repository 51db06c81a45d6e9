"""teach: labels and sketches, the same in any tiling."""

import json

import numpy as np
import pandas as pd
import pytest

import tissue_fixtures as made
from istseg.artifacts.labels import OBJECT_COLUMNS, TileLabels
from istseg.artifacts.tiles import Tile
from istseg.curation import density
from istseg.errors import InputError
from istseg.stages import calibrate


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """One sample in two tilings, taught: tile folders and labels of each."""
    folder = tmp_path_factory.mktemp("taught")
    sheet = made.make_sheet(folder, 75, 380)
    result = {}
    for name, tile_um in (("small", 90), ("large", 2000)):
        tiles = made.cut(sheet, folder / name, tile_um=tile_um)
        made.teach(tiles, folder / name / "labels")
        result[name] = tiles, folder / name / "labels"
    return sheet, result


def _owned(tiles, labels):
    objects = pd.concat([TileLabels.read(labels / t.name).objects for t in tiles])
    return objects[objects["owned"]]


def test_two_tilings_give_the_same_objects_each_once(taught):
    sheet, result = taught
    found = {name: _owned(*paths) for name, paths in result.items()}
    assert len(result["small"][0]) == 4 and len(result["large"][0]) == 1
    for objects in found.values():
        assert objects.groupby("layer").size().to_dict() == dict.fromkeys(["nuclei", "cells_Ring", "cells_Cyto"], len(sheet.centres_um))
        assert not objects["cut"].any()
    keys = [set(zip(o["layer"], o["geometry"], o["area_wpx"], o["centroid_x_wpx"], o["centroid_y_wpx"], strict=True)) for o in found.values()]
    assert keys[0] == keys[1] and len(keys[0]) == len(found["small"])


def test_sketches_of_two_tilings_sum_to_the_same(taught):
    _, result = taught
    sums = []
    for _, labels in result.values():
        sketches = calibrate.read_sketches([labels])
        thresholds = calibrate.pool(sketches, 5, 5)
        sums.append((sum(density.dense(s["density"]) for s in sketches).tolist(), thresholds))
    assert sums[0] == sums[1]
    assert sums[0][1].background_density > 0.1


def test_a_sketch_says_what_the_labels_say(taught):
    sheet, result = taught
    tiles, labels = result["large"]
    tile, stored = Tile.read(tiles[0]), TileLabels.read(labels / tiles[0].name)
    sketch = json.loads((labels / tiles[0].name / "sketch.json").read_text())
    nuclei, counts = stored.layers["nuclei"], tile.transcript_counts()
    per_nucleus = [int(counts[nuclei == i].sum()) for i in np.unique(nuclei)[1:]]
    values = sketch["transcripts_per_nucleus"]
    assert sorted(np.repeat(values["values"], values["counts"]).tolist()) == sorted(per_nucleus)
    inside = density.rna_density(counts, 1.08, 0.253)[nuclei > 0]
    pooled = density.dense(sketch["density"])
    assert pooled.sum() == len(inside)
    assert density.percentile(pooled, 5) == pytest.approx(np.percentile(inside, 5), rel=0.01)
    n = len(sheet.centres_um)
    assert sketch["cells"] == {"cells_Ring": {"cells": n, "consistent": n}, "cells_Cyto": {"cells": n, "consistent": n}}
    assert sketch["n_nuclei"] == n


def test_the_folder_is_whole_and_says_how_it_was_made(taught):
    _, result = taught
    tiles, labels = result["small"]
    assert sorted(p.name for p in labels.iterdir()) == [t.name for t in tiles]
    stored = TileLabels.read(labels / tiles[0].name)
    assert stored.method["teacher"] == "watershed" and stored.method["nucleus_diameter_um"] == 6.5
    assert stored.objects.columns.tolist() == OBJECT_COLUMNS


def test_empty_tissue_gives_empty_layers(tmp_path):
    sheet = made.make_sheet(tmp_path, 60, 60)
    made.write_image(sheet.store, np.full_like(sheet.image, 200), 2)
    made.write_points(sheet.store, sheet.transcripts, sheet.sample.transcript_bands_um)
    tiles = made.cut(sheet, tmp_path / "out")
    made.teach(tiles, tmp_path / "labels")
    stored = TileLabels.read(tmp_path / "labels" / tiles[0].name)
    assert len(stored.objects) == 0 and all(image.max() == 0 for image in stored.layers.values())
    sketch = json.loads((tmp_path / "labels" / tiles[0].name / "sketch.json").read_text())
    assert sketch["n_nuclei"] == 0 and sketch["density"] == {"bins": [], "counts": []}


def test_no_transcripts_and_no_membranes(tmp_path):
    sheet = made.make_sheet(tmp_path, 60, 60, membranes=(), per_cell=0)
    tiles = made.cut(sheet, tmp_path / "out")
    made.teach(tiles, tmp_path / "labels")
    stored = TileLabels.read(tmp_path / "labels" / tiles[0].name)
    assert set(stored.layers) == {"nuclei", "cells_expansion"}
    sketch = json.loads((tmp_path / "labels" / tiles[0].name / "sketch.json").read_text())
    assert sketch["transcripts_per_nucleus"] == {"values": [0], "counts": [len(sheet.centres_um)]}
    assert density.dense(sketch["density"])[1:].sum() == 0


def test_a_teacher_that_lacks_something_is_refused_before_any_work(tmp_path):
    with pytest.raises(InputError) as error:
        made.teach([tmp_path / "no tile"], tmp_path / "labels", teacher="cellpose")
    assert len(error.value.problems) == 2
    with pytest.raises(InputError, match=r"tile\.json: no such file"):
        made.teach([tmp_path / "no tile"], tmp_path / "labels")
    assert not (tmp_path / "labels").exists()
