"""The stage coexpression: matrix, colours, pictures and layer of a made sample whose cells are of two kinds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from istseg.artifacts import gene_colours
from istseg.artifacts.files import sha256
from istseg.artifacts.sample import Sample
from istseg.errors import InputError
from istseg.stages import coexpression
from tissue_fixtures import CONTROLS, SHIFT_UM, Sheet, make_sheet, write_points

GENES = ["A1", "A2", "B1", "B2", "Rare"]
RADIUS = 4.0


def two_kinds(folder: Path, bands: int = 3, seed: int = 0) -> Sheet:
    """Every second cell holds A1 and A2, the others B1 and B2; five transcripts of Rare; some control probes."""
    sheet = make_sheet(folder, per_cell=80, bands=bands, height_um=120)
    table = sheet.transcripts.sort_values("transcript_id")
    at = table[["y", "x"]].to_numpy() - SHIFT_UM[::-1]
    cell = np.linalg.norm(at[:, None] - sheet.centres_um[None], axis=2).argmin(1)
    rng = np.random.default_rng(5)
    names = np.where(cell % 2 == 0, rng.choice(["A1", "A2"], len(cell)), rng.choice(["B1", "B2"], len(cell))).astype(object)
    control = table["is_control"].to_numpy()
    names[np.flatnonzero(~control)[:5]] = "Rare"
    names[control] = CONTROLS[0]
    table = table.assign(gene=pd.Categorical(names, GENES + CONTROLS)).sample(frac=1, random_state=seed)
    shutil.rmtree(sheet.store / "points")
    write_points(sheet.store, table, sheet.sample.transcript_bands_um)
    sample = Sample.read(sheet.sample_json)
    sample.genes = GENES
    sample.write(sheet.sample_json)
    sheet.sample, sheet.transcripts = sample, table
    return sheet


def call(sheet: Sheet, out: Path, **options: object) -> dict:
    given = {"radius_um": RADIUS, "centres": 10**9, "regions": [], "picture_px": 300, "spot_um": 0.35, "layer_um": 0.5, "seed": 0, **options}
    coexpression.run(sample_json=sheet.sample_json, zarr=sheet.store, out=out, **given)
    return json.loads((out / "coexpression.json").read_text())


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coexpression")
    sheet = two_kinds(folder)
    before = {p: sha256(p) for p in sheet.store.rglob("*") if p.is_file()}
    record = call(sheet, folder / "out", regions=["510,-290,540,-270"])
    assert before == {p: sha256(p) for p in sheet.store.rglob("*") if p.is_file()}
    return sheet, folder / "out", record


def test_the_matrix_is_the_correlation_of_weighted_neighbours(shown):
    sheet, out, record = shown
    table = sheet.transcripts[~sheet.transcripts["is_control"]]
    xy, code = table[["x", "y"]].to_numpy(), table["gene"].cat.codes.to_numpy()
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    weight = np.clip(1 - distance / RADIUS, 0, None)
    np.fill_diagonal(weight, 0)
    expected = np.corrcoef((weight @ np.eye(5)[code]).T)
    matrix = pd.read_parquet(out / "coexpression.parquet")
    assert list(matrix.columns) == list(matrix.index) == GENES
    np.testing.assert_allclose(matrix.to_numpy(), expected, atol=1e-6)
    assert record["neighbourhoods"] == record["transcripts"] == len(table)


def test_genes_of_one_kind_of_cell_have_like_colours(shown):
    _, out, record = shown
    table = pd.read_csv(out / "gene_colours.csv").set_index("gene")
    red = table["red"]
    assert abs(red["A1"] - red["A2"]) < 40 and abs(red["B1"] - red["B2"]) < 40 and abs(red["A1"] - red["B1"]) > 150
    # Five transcripts say nothing: grey.
    assert table.loc["Rare", "hex"] == "#808080" and table.loc["Rare", "n_transcripts"] == 5
    assert record["genes_with_colour"] == 4


def test_pictures_and_layer_show_each_cell_in_its_colour(shown):
    from spatialdata import read_zarr
    from spatialdata.transformations import get_transformation

    sheet, out, record = shown
    assert [p["file"] for p in record["pictures"]] == ["pictures/sample.png", "pictures/region1.png"]
    assert record["pictures"][1]["region_um"] == "510,-290,540,-270"
    assert Image.open(out / "pictures" / "region1.png").size == (300, 200)
    layer = read_zarr(out / "rna_coexpression.zarr")["rna_coexpression"]
    image = np.asarray(layer["scale0"].image)
    assert image.shape == (3, 240, 181) and image.dtype == np.uint8
    to_um = get_transformation(layer).to_affine_matrix(("x", "y"), ("x", "y"))
    colours = pd.read_csv(out / "gene_colours.csv").set_index("gene")["red"]
    inner, brighter = [], []
    for i, (y, x) in enumerate(sheet.centres_um):
        px = np.linalg.solve(to_um, [x + SHIFT_UM[0], y + SHIFT_UM[1], 1])[:2].astype(int)
        if (px < 5).any() or px[0] > 174 or px[1] > 234:
            continue
        pixels = image[:, px[1] - 4 : px[1] + 5, px[0] - 4 : px[0] + 5].reshape(3, -1)
        red = pixels[0, pixels.sum(0) > 100].mean()
        inner.append(red)
        brighter.append((i % 2 == 0) == (colours["A1"] > colours["B1"]))
    inner, brighter = np.array(inner), np.array(brighter)
    assert len(inner) > 30 and inner[brighter].min() > inner[~brighter].max()
    assert (image.sum(0) == 0).mean() > 0.2


def test_bands_and_order_of_the_file_do_not_matter(shown, tmp_path):
    _, out, _ = shown
    other = two_kinds(tmp_path, bands=1, seed=9)
    call(other, tmp_path / "out", layer_um=0)
    np.testing.assert_allclose(*(pd.read_parquet(f / "coexpression.parquet") for f in (out, tmp_path / "out")), atol=1e-6)
    assert (out / "pictures" / "sample.png").read_bytes() == (tmp_path / "out" / "pictures" / "sample.png").read_bytes()
    assert not (tmp_path / "out" / "rna_coexpression.zarr").exists()


def test_fewer_neighbourhoods_are_drawn_by_the_seed(shown, tmp_path):
    sheet, out, _ = shown
    full = pd.read_parquet(out / "coexpression.parquet").to_numpy()
    drawn = [call(sheet, tmp_path / str(seed), centres=1500, layer_um=0, seed=seed) for seed in (1, 2)]
    assert all(1300 < record["neighbourhoods"] < 1700 for record in drawn) and drawn[0]["neighbourhoods"] != drawn[1]["neighbourhoods"]
    for seed in (1, 2):
        np.testing.assert_allclose(pd.read_parquet(tmp_path / str(seed) / "coexpression.parquet").to_numpy()[:4, :4], full[:4, :4], atol=0.1)


def test_regions_that_cannot_be_drawn_are_told_at_once(shown, tmp_path):
    sheet, _, _ = shown
    with pytest.raises(InputError) as error:
        call(sheet, tmp_path, regions=["1,2,3", "5,5,4,9", "0,0,10,10"])
    assert [text.split(":")[0] for text in error.value.problems] == ["--region 1,2,3", "--region 5,5,4,9", "--region 0,0,10,10"]
    assert "covers 500,-300,590." in error.value.problems[2]


def test_transcripts_of_another_sample_are_refused(shown, tmp_path):
    """The same panel, fewer transcripts."""
    other = make_sheet(tmp_path, per_cell=10, bands=3, height_um=120)
    with pytest.raises(InputError, match="transcripts, sample.json says .* do not belong together"):
        call(dataclasses.replace(shown[0], store=other.store), tmp_path / "out")


def test_a_second_run_leaves_nothing_of_the_first(shown, tmp_path):
    sheet, _, _ = shown
    first = call(sheet, tmp_path, regions=["510,-290,540,-270", "520,-290,550,-270"])
    (tmp_path / "pictures" / "region9.png").write_bytes(b"mine")
    first["pictures"].append({"file": "../outside.png"})
    (tmp_path / "coexpression.json").write_text(json.dumps(first))
    (tmp_path.parent / "outside.png").write_bytes(b"mine")
    call(sheet, tmp_path, layer_um=0)
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["region9.png", "sample.png"]
    assert not (tmp_path / "rna_coexpression.zarr").exists() and (tmp_path.parent / "outside.png").exists()


@pytest.mark.parametrize("text", ["[1]", "{", '{"pictures": 3, "layer_um": 0}'])
def test_a_record_of_other_origin_is_not_replaced(shown, tmp_path, text):
    (tmp_path / "coexpression.json").write_text(text)
    with pytest.raises(InputError, match="coexpression.json: is not the record of an earlier run"):
        call(shown[0], tmp_path)
    assert [p.read_text() for p in tmp_path.iterdir()] == [text]


@pytest.mark.parametrize("layer_um", [0.001, float("nan")])
def test_an_image_of_pixels_that_are_too_small_is_refused(shown, tmp_path, layer_um):
    with pytest.raises(InputError, match="0.1 µm at least"):
        call(shown[0], tmp_path / "out", layer_um=layer_um)
    assert not (tmp_path / "out").exists()


def test_without_enough_transcripts_all_genes_are_grey_and_it_is_said(tmp_path):
    sheet = make_sheet(tmp_path, per_cell=0)
    record = call(sheet, tmp_path / "out")
    assert "all genes are grey" in record["warnings"][0]
    table = gene_colours.read(tmp_path / "out" / "gene_colours.csv")
    assert np.allclose(table, gene_colours.GREY, atol=0.01)
