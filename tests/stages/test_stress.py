"""The stage stress, on a simulated sample with the shipped model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import shapely
from PIL import Image

from istseg.artifacts import cells
from istseg.artifacts.files import sha256
from istseg.artifacts.sample import Sample
from istseg.cli import road, tools
from istseg.cli.options import Platform
from istseg.errors import InputError
from istseg.stages import stress
from istseg.stress.judge import MEASURES
from network_fixtures import BASE_MODEL
from tissue_fixtures import make_sheet

LEVELS = {"contours": "0,0.9", "dim": "0.3", "blur": "none", "rna": "1,0.5"}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stress")
    tools.simulate(out=folder, width_um=70, height_um=70, planes=1, stains="Cellbound1;PolyT", empty_fraction=0.0, seed=2)
    road.convert(raw=folder / "raw", sample="s", platform=Platform.merscope, out=folder, z_planes="0")
    return folder


def call(folder: Path, out: Path, **options: object) -> dict:
    tools.stress(sample_json=folder / "sample.json", zarr=folder / "s.zarr", model=BASE_MODEL, out=out, **{**LEVELS, **options})
    return json.loads((out / "stress.json").read_text())


@pytest.fixture(scope="module")
def record(converted):
    before = {p: sha256(p) for p in (converted / "s.zarr").rglob("*") if p.is_file()}
    result = call(converted, converted / "out")
    assert before == {p: sha256(p) for p in (converted / "s.zarr").rglob("*") if p.is_file()}
    return result


def test_what_is_not_made_worse_gives_the_same_cells(record):
    rows = {(row["kind"], row["level"]): row for row in record["conditions"]}
    assert list(rows) == [("clean", None), ("contours", 0.0), ("contours", 0.9), ("dim", 0.3), ("rna", 1.0), ("rna", 0.5)]
    for key in (("clean", None), ("contours", 0.0), ("rna", 1.0)):
        assert rows[key]["pixel_iou"] == rows[key]["rna_iou"] == rows[key]["ap75"] == 1 and rows[key]["lost"] == 0
        assert rows[key]["cells"] == rows["clean", None]["cells"] > 15
    broken = rows["contours", 0.9]
    assert 0.3 < broken["affected_pixel_iou"] < broken["pixel_iou"] < 0.99
    assert "affected_pixel_iou" not in rows["dim", 0.3] and rows["dim", 0.3]["pixel_iou"] < 1
    assert rows["rna", 0.5]["pixel_iou"] > 0.9


def test_files_of_the_result(record, converted):
    out = converted / "out"
    with open(out / "stress.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert list(rows[0]) == ["kind", "level", *MEASURES] and [row["kind"] for row in rows] == [row["kind"] for row in record["conditions"]]
    assert float(rows[2]["pixel_iou"]) == pytest.approx(record["conditions"][2]["pixel_iou"], abs=1e-4) and rows[0]["affected_rna_iou"] == ""
    assert record["pictures"] == [f"stress_pictures/{name}.png" for name in ("clean", "contours_0", "contours_0.9", "dim_0.3", "rna_1", "rna_0.5")]
    assert all(Image.open(out / name).size == (554, 554) for name in record["pictures"]) and Image.open(out / "stress.png").width > 800
    assert record["contours_of"] == "clean segmentation" and record["region_chosen_by"] == "most transcripts in 250 µm"


def test_a_chosen_region_and_the_vendors_outlines(converted, tmp_path, record):
    x0, y0 = (float(v) for v in record["region_um"].split(",")[:2])
    region = f"{x0 + 5},{y0 + 10},{x0 + 60},{y0 + 55}"
    chosen = call(converted, tmp_path, region=region, contours="0.9", dim="none", rna="none", cells=0.5, vendor_cells=converted / "vendor_cells.parquet")
    assert [float(v) for v in chosen["region_um"].split(",")] == pytest.approx([float(v) for v in region.split(",")], abs=0.01)
    clean, broken = chosen["conditions"]
    assert chosen["contours_of"] == "vendor" and clean["cells"] < record["conditions"][0]["cells"]
    assert broken["affected_pixel_iou"] < broken["pixel_iou"] < 1


def test_only_pictures_of_its_own_are_replaced(converted, tmp_path):
    """As after `coexpression` into the same folder."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "sample.png").write_bytes(b"coexpression")
    few = {"contours": "none", "dim": "none"}
    call(converted, tmp_path, rna="0.5", **few)
    call(converted, tmp_path, rna="0.75", **few)
    assert (pictures / "sample.png").read_bytes() == b"coexpression"
    assert sorted(p.name for p in (tmp_path / "stress_pictures").iterdir()) == ["clean.png", "rna_0.75.png"]
    record = (tmp_path / "stress.json").read_bytes()
    (tmp_path / "stress_pictures" / "mine.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="stress_pictures: holds mine.png, which this command did not write"):
        call(converted, tmp_path, rna="0.5", device="cuda", **few)
    assert (tmp_path / "stress_pictures" / "mine.png").read_bytes() == b"mine" and (tmp_path / "stress.json").read_bytes() == record


def test_contours_that_cannot_be_broken_are_no_result(converted, tmp_path):
    far = cells.read(converted / "vendor_cells.parquet")
    cells.write(tmp_path / "far.parquet", cells.frame(list(far["cell_id"]), shapely.transform(far.geometry.to_numpy(), lambda xy: xy + 5000)))
    with pytest.raises(InputError, match="far.parquet: has no cell in the region .* Is it of another sample"):
        call(converted, tmp_path / "out", vendor_cells=tmp_path / "far.parquet")
    with pytest.raises(InputError, match="--cells 0: is none of the [0-9]+ cells in the region"):
        call(converted, tmp_path / "out", cells=0.0)
    assert not (tmp_path / "out").exists()


def test_a_box_of_the_largest_side_is_not_too_wide(converted):
    sample = Sample.read(converted / "sample.json")
    start = next(v for v in (i * 24 / 7 for i in range(1, 1000)) if v + 1000 - v > 1000)
    stress._check_size(sample, (0.0, start, 1000.0, start + 1000))
    with pytest.raises(InputError, match="at most 1000 µm"):
        stress._check_size(sample, (0.0, 0.0, 1000.0, 1000.1))


def test_problems_are_told_at_once(converted, tmp_path):
    with pytest.raises(InputError) as error:
        call(converted, tmp_path, region="0,0,10,10", contours="0.5,1.5", rna="0.5,0.5", dim="none")
    texts = error.value.problems
    assert len(texts) == 3 and "--contours 1.5" in texts[0] and "--rna: a level is given twice" in texts[1] and "lies outside" in texts[2]
    with pytest.raises(InputError, match="--rna half"):
        call(converted, tmp_path, rna="half")
    with pytest.raises(InputError, match="nothing is made worse"):
        call(converted, tmp_path, **dict.fromkeys(LEVELS, "none"))
    sheet = make_sheet(tmp_path, membranes=())
    with pytest.raises(InputError, match="has no membrane stain to make worse; give --contours none --dim none"):
        call(sheet.folder, tmp_path / "out")
