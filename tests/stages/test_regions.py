"""regions: squares worth a look, their pictures and outlines."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import result_fixtures as made
from istseg.artifacts import gene_colours
from istseg.artifacts.metrics import FLAGS
from istseg.artifacts.regions import Regions
from istseg.artifacts.tiles import TileIndex
from istseg.errors import InputError
from istseg.grid import WindowGrid
from istseg.qc.regions import choose
from istseg.stages import assess, assign, regions

CONSISTENT, SPURIOUS = FLAGS.index("consistent"), FLAGS.index("spurious")


def index(height: int, width: int) -> TileIndex:
    return TileIndex("s", WindowGrid(height, width).as_dict(), 1, 0.25, np.eye(3).tolist(), [], [], 1.0)


def test_the_squares_hold_what_their_reasons_say():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0, 1000, (900, 2))
    crowd, odd = rng.uniform(800, 900, (150, 2)), rng.uniform(100, 200, (40, 2))
    xy = np.concatenate([spread, crowd, odd])
    flag = np.r_[np.full(1050, CONSISTENT), np.full(40, SPURIOUS)]
    found = {reason.split(":")[0]: (y, x) for reason, y, x in choose(index(1000, 1000), xy, flag, 200)}

    def inside(y, x):
        return ((xy >= [x, y]) & (xy < [x + 200, y + 200])).all(1)

    assert list(found) == ["typical", "most flagged cells", "most cells"]
    assert (flag[inside(*found["most flagged cells"])] == SPURIOUS).sum() == 40
    assert inside(*found["most cells"])[900:1050].sum() > 140
    corners = np.array(list(found.values()))
    apart = np.abs(corners[:, None] - corners).max(-1)[~np.eye(3, dtype=bool)]
    assert apart.min() >= 200


def test_a_small_or_empty_sample_has_fewer_squares():
    few = np.array([[10.0, 10.0], [20.0, 12.0]])
    assert len(choose(index(150, 120), few, np.array([CONSISTENT, CONSISTENT]), 600)) == 1
    assert choose(index(150, 120), np.zeros((0, 2)), np.zeros(0, int), 600) == []


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    centres = np.stack(np.meshgrid(np.arange(10, 115, 14.0), np.arange(10, 95, 14.0)), -1).reshape(-1, 2)
    nuclei = [made.circle(x, y, 2.5) for x, y in centres[3:]]
    world = made.make(tmp_path_factory.mktemp("regions"), centres, nuclei=nuclei, windows_per_side=1)
    p, out = world.paths, world.root
    assign.run(sample_json=p["sample"], transcripts=p["points"], cells=p["cells"], segmentation="istseg", out=out / "assigned", labels=p["labels"])
    assess.run(
        sample_json=p["sample"], tiles=p["tiles"], counts=out / "assigned", cells=p["cells"], nuclei=p["nuclei"], thresholds=p["thresholds"],
        segmentation="istseg", out=out / "assessed", umap_cells=0, crops=0,
    )  # fmt: skip
    return world


def draw(world, out, side_um=50.0, **more):
    given = {"istseg": world.paths["cells"], "vendor": world.paths["cells"]}
    arguments = {"cells": given, "counts": world.root / "assessed" / "counts.h5ad", "segmentation": "istseg"} | more
    regions.run(tiles=world.paths["tiles"], nuclei=world.paths["nuclei"], out=out, side_um=side_um, **arguments)
    return Regions.read(out / "regions" / "regions.json")


def test_pictures_and_outlines_show_the_same_place(world, tmp_path):
    found = draw(world, tmp_path)
    assert (found.side_px, found.um_per_px) == (200, 0.25)
    region = found.regions[0]
    assert [(layer["name"], layer["role"]) for layer in region.layers] == [("DAPI", "nucleus"), ("Cellbound1", "membrane"), ("RNA", "rna")]
    assert [o["name"] for o in region.outlines] == ["nuclei", "istseg", "vendor"]
    dapi, membrane = (np.asarray(Image.open(tmp_path / "regions" / layer["file"])) for layer in region.layers[:2])
    assert dapi.shape == (200, 200)
    nuclei, ours, theirs = region.outlines
    assert ours["rings"] == theirs["rings"]
    assert theirs["flags"] is None
    assert len(ours["flags"]) == len(ours["ids"]) == len(ours["rings"]) > 5
    for outlines, picture in ((nuclei, dapi), (ours, membrane)):
        for ring in outlines["rings"]:
            x, y = np.array([p.split(",") for p in ring.split()], float)[:-1].mean(0)
            if 3 < x < 197 and 3 < y < 197:
                assert picture[int(y), int(x)] > 100
    # The cells without nucleus lie in the first row of the sample.
    bare = {i for o in found.regions for i, f in zip(o.outlines[1]["ids"], o.outlines[1]["flags"], strict=True) if FLAGS[f] != "consistent"}
    assert bare <= {"s1_001", "s1_002", "s1_003"}


def test_regions_do_not_depend_on_the_tiling(world, tmp_path):
    centres = np.stack(np.meshgrid(np.arange(10, 115, 14.0), np.arange(10, 95, 14.0)), -1).reshape(-1, 2)
    whole = made.make(tmp_path / "whole", centres, nuclei=[made.circle(x, y, 2.5) for x, y in centres[3:]], windows_per_side=4)
    one = draw(world, tmp_path / "a")
    regions.run(
        tiles=whole.paths["tiles"], nuclei=world.paths["nuclei"], cells={"istseg": world.paths["cells"], "vendor": world.paths["cells"]},
        counts=world.root / "assessed" / "counts.h5ad", segmentation="istseg", out=tmp_path / "b", side_um=50.0,
    )  # fmt: skip
    assert Regions.read(tmp_path / "b" / "regions" / "regions.json") == one
    for layer in one.regions[0].layers:
        assert (tmp_path / "a" / "regions" / layer["file"]).read_bytes() == (tmp_path / "b" / "regions" / layer["file"]).read_bytes()


def test_a_square_is_no_larger_than_the_sample(world, tmp_path):
    found = draw(world, tmp_path, side_um=400.0)
    assert found.side_px * found.um_per_px == made.WIDTH_UM
    assert len(found.regions) == 1


def test_rna_is_drawn_in_the_colours_of_the_genes(world, tmp_path):
    plain = draw(world, tmp_path / "plain")
    colours = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    gene_colours.write(tmp_path / "gene_colours.csv", made.GENES, np.ones(4), colours)
    found = draw(world, tmp_path / "coloured", colours=tmp_path / "gene_colours.csv")
    grey, coloured = plain.regions[0].layers[-1], found.regions[0].layers[-1]
    assert grey["colour"] and coloured["colour"] is None
    dots = np.asarray(Image.open(tmp_path / "plain" / "regions" / grey["file"]), float)
    picture = np.asarray(Image.open(tmp_path / "coloured" / "regions" / coloured["file"]), float)
    assert picture.shape == (200, 200, 3)
    assert np.corrcoef(dots.ravel(), picture.max(-1).ravel())[0, 1] > 0.7
    # Single transcripts are red, green, blue or yellow: no two channels are the same everywhere.
    assert min(np.abs(picture[..., a] - picture[..., b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 50
    (tmp_path / "gene_colours.csv").write_text("gene,red\nActb,1\n")
    with pytest.raises(InputError, match="is not a gene_colours.csv"):
        draw(world, tmp_path / "bad", colours=tmp_path / "gene_colours.csv")


def test_what_does_not_belong_together_is_refused(world, tmp_path):
    with pytest.raises(InputError, match="--cells: has no istseg"):
        draw(world, tmp_path, cells={"vendor": world.paths["cells"]})
    with pytest.raises(InputError, match="is not the counts.h5ad of the stage assess"):
        draw(world, tmp_path, counts=world.root / "assigned" / "counts.h5ad")
    assert not (tmp_path / "regions").exists()
