"""curate: counts by rule, patches, and that neither depends on the tiling."""

import dataclasses

import numpy as np
import pytest

import tissue_fixtures as made
from istseg.artifacts.labels import TileLabels, describe
from istseg.artifacts.patches import Patch
from istseg.artifacts.thresholds import Thresholds
from istseg.artifacts.tiles import Tile
from istseg.curation.density import rna_density
from istseg.errors import InputError
from istseg.network.field import count_window, stain_window
from istseg.stages import calibrate
from istseg.stages.curate import Limits, curate_tile

LIMITS = Limits(0.95, 0.05, 0.05, 0.5, 1.08)


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """One sample in two tilings, curated. A cell in seven has no transcripts."""
    folder = tmp_path_factory.mktemp("curated")
    sheet = made.make_sheet(folder, 75, 380)
    points = sheet.transcripts
    at = np.column_stack([points["y"] - made.SHIFT_UM[1], points["x"] - made.SHIFT_UM[0]])
    silent = np.zeros(len(points), bool)
    for centre in sheet.centres_um[::7]:
        silent |= np.hypot(*(at - centre).T) < 6
    made.write_image(sheet.store, sheet.image, 3)
    made.write_points(sheet.store, points[~silent], sheet.sample.transcript_bands_um)
    dataclasses.replace(sheet.sample, transcripts={"total": int((~silent).sum())}).write(sheet.sample_json)
    result = {}
    for name, tile_um in (("small", 90), ("large", 2000)):
        out = folder / name
        tiles = made.cut(sheet, out, tile_um=tile_um)
        made.teach(tiles, out / "labels")
        calibrate.run(labels=[out / "labels"], out=out, background_percentile=15, spurious_percentile=5)
        record = made.curate(tiles, out / "labels", out / "thresholds.json", out / "curated")
        result[name] = tiles, out, record
    return sheet, result


def test_two_tilings_count_the_same(curated):
    sheet, result = curated
    small, large = (result[name][2] for name in ("small", "large"))
    assert small["by_layer"] == large["by_layer"] and small["patches"] == large["patches"] > 0
    assert small["tiles"] == [t.name for t in result["small"][0]] and small["sample"] == "s"
    for layer, counts in small["by_layer"].items():
        n = len(sheet.centres_um)
        assert layer in ("cells_Ring", "cells_Cyto")
        assert sum(v for k, v in counts.items() if k.startswith("cells_")) == n
        assert sum(v for k, v in counts.items() if k.startswith("nuclei_")) == n
        assert counts["cells_kept_one_nucleus"] == counts["nuclei_in_kept_cell"] == n


def test_two_tilings_give_the_same_patches_up_to_the_numbers_of_labels(curated):
    _, result = curated
    patches = [{p.name.split("_w")[1]: Patch.read(p) for p in (result[name][1] / "curated/patches").iterdir()} for name in ("small", "large")]
    assert patches[0].keys() == patches[1].keys()
    for name, a in patches[0].items():
        b = patches[1][name]
        assert a.gene_names == b.gene_names
        for field in ("stains", "counts", "teach", "genes"):
            assert np.array_equal(getattr(a, field), getattr(b, field)), field
        assert np.array_equal(a.labels > 0, b.labels > 0)
        pairs = np.unique(np.stack([a.labels.ravel(), b.labels.ravel()]), axis=1)
        assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def test_patches_are_what_the_network_sees(curated):
    _, result = curated
    tiles, out, _ = result["large"]
    tile = Tile.read(tiles[0])
    for path in sorted((out / "curated/patches").iterdir()):
        patch = Patch.read(path)
        box = tile.window_grid.window_box(*patch.window)
        assert path.name == f"{tile.tile_id}_w{patch.window[0]}_{patch.window[1]}.npz"
        assert np.array_equal(patch.normalised(), stain_window(tile, box))
        assert np.array_equal(patch.counts, count_window(tile, tile.transcript_counts(), box))
        assert set(patch.gene_names) == set(made.GENES) and np.array_equal(patch.genes > 0, patch.counts > 0)
        for genes in (made.GENES, ["Mbp", "unknown"]):
            assert np.array_equal(patch.gene_map(genes), count_window(tile, tile.gene_map(genes), box))
        inside = tile.window_grid.clip(box)
        outside = np.ones((512, 512), bool)
        outside[inside[0] - box[0] : inside[2] - box[0], inside[1] - box[1] : inside[3] - box[1]] = False
        assert outside.any() and np.array_equal(patch.inside_mosaic(), ~outside)
        assert not patch.labels[:, outside].any() and not patch.teach[:, outside].any()


def test_what_may_teach(curated):
    _, result = curated
    tiles, out, _ = result["large"]
    tile, taught = Tile.read(tiles[0]), TileLabels.read(out / "labels" / tiles[0].name)
    limits = Thresholds.read(out / "thresholds.json")
    found = curate_tile(tile, taught, dataclasses.replace(LIMITS, background_density=limits.background_density))
    background = rna_density(tile.transcript_counts(), 1.08, 0.253) < limits.background_density
    anything = np.any([image > 0 for image in taught.layers.values()], axis=0)
    assert background.any() and (background & anything).any()
    for layer, labels in found.labels.items():
        assert np.array_equal(found.teach[layer], (labels > 0) | (background & ~anything))


def _by_hand(tmp_path, nuclei, cells, layer="cells_Ring"):
    """A tile of the sheet with other labels; transcripts everywhere but in the left quarter."""
    sheet = made.make_sheet(tmp_path, 60, 60, membranes=("Ring",))
    tile = Tile.read(made.cut(sheet, tmp_path / "out")[0])
    size = tile.shape[0]
    y, x = np.mgrid[1:size:3, size // 4 : size : 3]
    points = tile.transcripts().iloc[:1]
    points = points.loc[points.index.repeat(y.size)].assign(x_wpx=x.ravel() + 0.5, y_wpx=y.ravel() + 0.5, is_control=False)
    tile.write(tmp_path / "tile", np.asarray(tile.raw_stains()), points, tile.sample_genes())
    import pandas as pd

    images = {"nuclei": _paint(size, nuclei), layer: _paint(size, cells)}
    objects = pd.concat([describe(n, i, tile.core, tile.region, tile.shape) for n, i in images.items()], ignore_index=True)
    return tile, TileLabels("s", tile.tile_id, tile.core, tile.region, images, objects, {})


def _paint(size, boxes):
    image = np.zeros((size, size), np.int32)
    for i, (y, x, side) in enumerate(boxes, 1):
        image[y : y + side, x : x + side] = i
    return image


def test_every_rule_is_counted(tmp_path):
    cells = [(10, 100, 30), (50, 100, 30), (90, 100, 30), (130, 100, 30), (130, 10, 30), (170, 10, 30)]
    nuclei = [(20, 110, 10), (52, 102, 10), (65, 115, 10), (95, 95, 10), (140, 20, 10), (200, 100, 12), (200, 10, 12)]
    tile, taught = _by_hand(tmp_path, nuclei, cells)
    found = curate_tile(tile, taught, LIMITS)
    assert found.counts == {
        "cells_Ring": {
            "cells_kept_one_nucleus": 2, "cells_kept_without_nucleus": 1, "cells_dropped_several_nuclei": 1, "cells_dropped_partial_nucleus": 1,
            "cells_dropped_background": 1, "nuclei_in_kept_cell": 2, "nuclei_kept_stand_in": 4,
            "nuclei_dropped_several_cells": 0, "nuclei_dropped_background": 1,
        }
    }  # fmt: skip
    labels = found.labels["cells_Ring"]
    # Cells 1, 4 and 5 (in the dark, but with a nucleus) keep their numbers, stand-ins come after the last cell.
    assert set(np.unique(labels)) - {0} == {1, 4, 5} | {6 + n for n in (2, 3, 4, 6)}
    teach = found.teach["cells_Ring"]
    assert teach[10:40, 100:130].all() and not teach[180:190, 20:30].any() and teach[100:120, 5:30].all() and not teach[205, 15]


def test_looser_limits_keep_more(tmp_path):
    tile, taught = _by_hand(tmp_path, [(200, 10, 12)], [(170, 10, 20)])
    assert curate_tile(tile, taught, LIMITS).counts["cells_Ring"]["cells_dropped_background"] == 1
    loose = curate_tile(tile, taught, dataclasses.replace(LIMITS, max_background=1.0)).counts["cells_Ring"]
    assert loose["cells_kept_without_nucleus"] == 1 and loose["nuclei_kept_stand_in"] == 1
    no_background = curate_tile(tile, taught, dataclasses.replace(LIMITS, background_density=0.0))
    assert no_background.counts["cells_Ring"]["cells_kept_without_nucleus"] == 1
    assert np.array_equal(no_background.teach["cells_Ring"], no_background.labels["cells_Ring"] > 0)


def test_no_transcripts_no_membranes_and_no_objects(tmp_path):
    sheet = made.make_sheet(tmp_path, 60, 60, membranes=(), per_cell=0)
    tiles = made.cut(sheet, tmp_path)
    made.teach(tiles, tmp_path / "labels")
    calibrate.run(labels=[tmp_path / "labels"], out=tmp_path, background_percentile=5, spurious_percentile=5)
    record = made.curate(tiles, tmp_path / "labels", tmp_path / "thresholds.json", tmp_path / "curated")
    assert record["by_layer"]["cells_expansion"]["cells_kept_one_nucleus"] == len(sheet.centres_um) and record["patches"] == 1
    patch = Patch.read(next((tmp_path / "curated/patches").iterdir()))
    assert patch.label_names == ["cells_expansion"] and patch.counts.sum() == 0 and patch.stains.shape == (1, 512, 512)
    none = made.curate(tiles, tmp_path / "labels", tmp_path / "thresholds.json", tmp_path / "many", min_objects=1000)
    assert none["patches"] == 0
    off = made.curate(tiles, tmp_path / "labels", tmp_path / "thresholds.json", tmp_path / "off", patches=False)
    assert off["patches"] == 0 and off["by_layer"] == record["by_layer"] and not (tmp_path / "off/patches").exists()


def test_files_of_another_sample_or_tiling_are_refused(curated, tmp_path):
    sheet, result = curated
    tiles, out, _ = result["small"]
    limits = Thresholds.read(out / "thresholds.json")
    dataclasses.replace(limits, sample="other").write(tmp_path / "thresholds.json")
    with pytest.raises(InputError, match="files of one sample"):
        made.curate(tiles, out / "labels", tmp_path / "thresholds.json", tmp_path / "a")
    with pytest.raises(InputError, match="run teach again on these tiles"):
        made.curate(result["large"][0], out / "labels", out / "thresholds.json", tmp_path / "b")
    with pytest.raises(InputError, match="no such file"):
        made.curate(tiles, tmp_path / "nowhere", out / "thresholds.json", tmp_path / "c")
