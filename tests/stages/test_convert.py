"""convert: what goes in comes out, pixel by pixel and transcript by transcript, in the form spatialdata reads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile

import raw_fixtures as fx
from istseg.artifacts import spatial
from istseg.artifacts.sample import Sample, apply_affine
from istseg.errors import InputError
from istseg.stages import convert


def run(raw: Path, out: Path, platform: str = "merscope", **options) -> tuple[Sample, np.ndarray, pd.DataFrame]:
    convert.run(raw=raw, sample="s", platform=platform, out=out, **options)
    store = out / "s.zarr"
    points = pd.concat([pq.read_table(p).to_pandas() for p in spatial.transcript_parts(store)], ignore_index=True)
    return Sample.read(out / "sample.json"), spatial.image_level(store)[:], points.sort_values("transcript_id", ignore_index=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("table", ["csv", "csv.gz", "parquet"])
def test_merscope_pixels_and_transcripts_are_those_of_the_raw_folder(tmp_path: Path, table: str) -> None:
    truth = fx.merscope(tmp_path / "raw", table=table)
    sample, image, points = run(tmp_path / "raw", tmp_path / "out", z_planes="1")
    assert [(s.name, s.role) for s in sample.stains] == [("DAPI", "nucleus"), ("Cellbound1", "membrane"), ("PolyT", "membrane")]
    for channel, stain in zip(image, sample.stains, strict=True):
        np.testing.assert_array_equal(channel, truth["images"][stain.name, 1])
    raw = truth["transcripts"]
    np.testing.assert_allclose(points[["x", "y"]], raw[["global_x", "global_y"]], rtol=1e-12)
    assert points["transcript_id"].tolist() == list(range(len(raw)))
    assert points["gene"].astype(str).tolist() == raw["gene"].tolist()
    assert (points["is_control"].to_numpy() == raw["gene"].str.startswith("Blank").to_numpy()).all()
    expected = raw["cell_id"].where(raw["cell_id"] != "-1")
    assert points["vendor_cell"].isna().tolist() == expected.isna().tolist()
    assert set(points["vendor_cell"].dropna()) == {"1878901234567890123"}, "ids of 19 digits keep every digit"
    np.testing.assert_allclose(apply_affine(sample.affine, points[["x", "y"]].to_numpy()), np.column_stack([truth["px"], truth["py"]]), atol=1e-6)
    counts = sample.transcripts
    assert counts["total"] == len(raw) == counts["genes"] + counts["controls"] == sum(counts["by_plane"].values())
    assert sample.genes == ["Actb", "Gad1", "HLA-A/B"]
    assert sample.controls == ["Blank-1"]


def test_ranges_are_exact_percentiles_of_the_imaged_pixels(tmp_path: Path) -> None:
    truth = fx.merscope(tmp_path / "raw", planes=1, stains=("DAPI", "PolyT"))
    for stain in ("DAPI", "PolyT"):
        picture = truth["images"][stain, 0]
        picture[:90, :] = 0  # never imaged
        picture[100:110, 5] = 65535
        tifffile.imwrite(tmp_path / "raw" / "images" / f"mosaic_{stain}_z0.tif", picture)
    truth["images"]["PolyT", 0][200, :50] = 0  # dark but imaged: DAPI is there
    tifffile.imwrite(tmp_path / "raw" / "images" / "mosaic_PolyT_z0.tif", truth["images"]["PolyT", 0])
    sample, _, _ = run(tmp_path / "raw", tmp_path / "out")
    for stain in sample.stains:
        values = truth["images"][stain.name, 0][90:]
        np.testing.assert_allclose([stain.low, stain.high], np.percentile(values, [1, 99]))
        assert (stain.minimum, stain.maximum) == (values.min(), 65535)
        np.testing.assert_allclose(stain.mean, values.mean())
        np.testing.assert_allclose(stain.saturated_fraction, (values == 65535).mean())
    assert sample.details["imaged_fraction"] == pytest.approx(210 / 300)


@pytest.mark.parametrize(("choice", "planes"), [("1-2", (1, 2)), ("all", (0, 1, 2)), ("2", (2,))])
def test_planes_by_maximum_projection(tmp_path: Path, choice: str, planes: tuple[int, ...]) -> None:
    truth = fx.merscope(tmp_path / "raw")
    sample, image, _ = run(tmp_path / "raw", tmp_path / "out", z_planes=choice)
    for channel, stain in zip(image, sample.stains, strict=True):
        np.testing.assert_array_equal(channel, np.max([truth["images"][stain.name, z] for z in planes], axis=0))
    assert sample.details["planes"]["planes"]["DAPI"] == list(planes)


def test_focus_takes_the_sharpest_plane_of_the_nucleus_stain_for_every_stain(tmp_path: Path) -> None:
    import cv2

    truth = fx.merscope(tmp_path / "raw", planes=4)
    for z, sigma in enumerate((6, 3, 0, 4)):
        sharp = truth["images"]["DAPI", 0].astype(np.float32)
        picture = cv2.GaussianBlur(sharp, (0, 0), sigma) if sigma else sharp
        # As much noise in every plane, so that noise cannot decide.
        picture = picture + np.random.default_rng(z).normal(0, 30, picture.shape)
        tifffile.imwrite(tmp_path / "raw" / "images" / f"mosaic_DAPI_z{z}.tif", np.clip(picture, 0, 65535).astype(np.uint16))
    sample, image, _ = run(tmp_path / "raw", tmp_path / "out")
    assert sample.details["planes"]["planes"] == {"DAPI": [2], "Cellbound1": [2], "PolyT": [2]}
    np.testing.assert_array_equal(image[1], truth["images"]["Cellbound1", 2])


@pytest.mark.parametrize(
    "tiff",
    [
        {"tile": (128, 64), "compression": "zlib"},
        {"compression": "lzw", "rowsperstrip": 7},
        {"compression": "zstd", "predictor": 2, "rowsperstrip": 300},
        {"byteorder": ">"},
        {"bigtiff": True, "rowsperstrip": 13},
    ],
    ids=["tiled", "lzw strips", "one strip", "big endian", "bigtiff"],
)
def test_every_layout_of_tiff_gives_the_same_image(tmp_path: Path, tiff: dict) -> None:
    truth = fx.merscope(tmp_path / "raw", height=700, width=330, planes=1, stains=("DAPI",), tiff=tiff)
    _, image, _ = run(tmp_path / "raw", tmp_path / "out")
    np.testing.assert_array_equal(image[0], truth["images"]["DAPI", 0])


def test_8_bit_images_keep_their_values(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "raw", planes=1, stains=("DAPI",))
    picture = (fx.pattern(300, 400) >> 5).astype(np.uint8)
    picture[0, 0] = 255
    tifffile.imwrite(tmp_path / "raw" / "images" / "mosaic_DAPI_z0.tif", picture)
    sample, image, _ = run(tmp_path / "raw", tmp_path / "out")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image[0], picture)
    assert sample.stains[0].saturated_fraction == pytest.approx((picture[picture > 0] == 255).mean())


def test_spatialdata_reads_it_and_everything_lies_in_one_frame(tmp_path: Path) -> None:
    import spatialdata
    from spatialdata.transformations import get_transformation

    truth = fx.merscope(tmp_path / "raw", height=1100, width=1301)
    sample, image, points = run(tmp_path / "raw", tmp_path / "out", z_planes="0")
    data = spatialdata.read_zarr(tmp_path / "out" / "s.zarr")
    assert set(data.coordinate_systems) == {"global"}
    stains = data["stains"]
    assert list(stains["scale0"]["image"].c.values) == ["DAPI", "Cellbound1", "PolyT"]
    np.testing.assert_array_equal(stains["scale0"]["image"].values, image)
    to_micron = get_transformation(stains, "global").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(to_micron @ sample.affine, np.eye(3), atol=1e-9)
    for axis in (get_transformation(data["transcripts"], "global"), get_transformation(data["vendor_cells"], "global")):
        np.testing.assert_array_equal(axis.to_affine_matrix(("x", "y"), ("x", "y")), np.eye(3))
    assert len(data["transcripts"]) == len(points)
    assert data["vendor_cells"].index.tolist() == [f"{1878901234567890000 + i}" for i in range(5)]
    # A box in µm cuts the same piece from image, points and shapes.
    x0, y0 = np.linalg.inv(sample.affine)[:2, 2] + [10, 10]
    part = data.query.bounding_box(("x", "y"), [x0, y0], [x0 + 50, y0 + 50], "global")
    expected = points["x"].between(x0, x0 + 50) & points["y"].between(y0, y0 + 50)
    assert len(part["transcripts"]) == expected.sum() > 0
    assert abs(part["stains"]["scale0"]["image"].shape[1] - 50 / fx.PIXEL_UM) <= 2
    # The pyramid: means of 2 x 2.
    half = image[:, : 1100 // 2 * 2, : 1301 // 2 * 2].reshape(3, 550, 2, 650, 2).mean((2, 4))
    assert np.abs(spatial.image_level(tmp_path / "out" / "s.zarr", 1)[:] - half).max() <= 0.5
    assert spatial.n_levels(tmp_path / "out" / "s.zarr") == 3
    data["transcripts"].compute()  # the parts share one set of categories
    assert truth["matrix"][0, 0] == sample.affine[0, 0]


def test_bands_hold_what_their_ends_say(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "raw", height=6000, width=64, planes=1, stains=("DAPI",), n=4000, cells="none")
    sample, _, points = run(tmp_path / "raw", tmp_path / "out")
    ends = sample.transcript_bands_um
    assert len(ends) == 3
    assert ends[-1] == pytest.approx(6000 * sample.pixel_size_um)
    seen = 0
    for i, part in enumerate(spatial.transcript_parts(tmp_path / "out" / "s.zarr" / "points" / "transcripts" / "points.parquet")):
        rows = pq.read_table(part).to_pandas()
        y = apply_affine(sample.affine, rows[["x", "y"]].to_numpy())[:, 1] * sample.pixel_size_um
        assert (y >= (ends[i - 1] if i else 0)).all()
        assert (y < ends[i]).all()
        assert list(rows["gene"].cat.categories) == sample.genes + sample.controls
        assert rows["transcript_id"].is_monotonic_increasing
        seen += len(rows)
    assert seen == len(points) == 4000
    assert list(spatial.bands_between(ends, ends[0] - 1, ends[0] + 1)) == [0, 1]
    assert list(spatial.bands_between(ends, ends[0], ends[1])) == [1]
    assert list(spatial.bands_between(ends, -50, -10)) == [0]
    assert list(spatial.bands_between(ends, ends[-1] + 5, ends[-1] + 9)) == [2]


def test_transcripts_outside_the_image_are_kept_and_counted(tmp_path: Path) -> None:
    truth = fx.merscope(tmp_path / "raw")
    frame = truth["transcripts"]
    frame.loc[:149, "global_x"] -= 100.0
    frame.loc[150:159, "global_y"] += 5000.0
    fx.write_table(frame, tmp_path / "raw" / "detected_transcripts.csv")
    sample, _, points = run(tmp_path / "raw", tmp_path / "out")
    assert sample.transcripts["outside_image"] == 160
    assert sample.transcripts["total"] == len(points) == 600
    assert any("73%" in w for w in sample.details["warnings"])


def test_few_broken_rows_are_left_out_and_told_many_are_refused(tmp_path: Path) -> None:
    truth = fx.merscope(tmp_path / "raw", n=3000)
    frame = truth["transcripts"]
    frame.loc[17, "global_x"] = np.nan
    frame.loc[18, "gene"] = None
    fx.write_table(frame, tmp_path / "raw" / "detected_transcripts.csv")
    sample, _, points = run(tmp_path / "raw", tmp_path / "out")
    assert sample.transcripts["invalid"] == 2
    assert sample.transcripts["total"] == 2998
    assert not points["transcript_id"].isin([17, 18]).any(), "ids stay row numbers of the raw table"
    assert any("first: row 18" in w for w in sample.details["warnings"])
    frame.loc[100:200, "global_y"] = np.inf
    fx.write_table(frame, tmp_path / "raw" / "detected_transcripts.csv")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="103 of 3000 rows"):
        run(tmp_path / "raw", tmp_path / "out")
    assert contents(tmp_path / "out") == before, "the earlier result stays whole"


def test_an_earlier_result_is_whole_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each renaming: what describes a store lies beside no other one."""
    out = tmp_path / "out"
    fx.merscope(tmp_path / "a", cells="hdf5")
    fx.merscope(tmp_path / "b", cells="none", seed=1)
    seen: list[set[str]] = []
    replace = os.replace

    def told(source: Path, target: Path) -> None:
        if Path(target).name == "s.zarr":
            seen.append({p.name for p in out.iterdir() if not p.name.startswith(".")})
        replace(source, target)

    run(tmp_path / "a", out)
    assert {p.name for p in out.iterdir()} == {"s.zarr", "sample.json", "vendor_cells.parquet", "vendor_planes.parquet"}
    monkeypatch.setattr(os, "replace", told)
    run(tmp_path / "b", out)
    assert {p.name for p in out.iterdir()} == {"s.zarr", "sample.json"}
    run(tmp_path / "a", out)
    assert all("sample.json" not in names and "vendor_cells.parquet" not in names for names in seen) and len(seen) == 2
    fresh = tmp_path / "fresh"
    run(tmp_path / "a", fresh)
    assert contents(out) == contents(fresh)


@pytest.mark.parametrize("name", ["cohort", "a b"])
def test_a_name_that_is_not_allowed_is_told_in_the_words_of_the_samplesheet(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"--sample: the sample name '{name}' is not allowed; use up to 80 letters.* none of the names of results: cohort, "):
        convert.run(raw=tmp_path, sample=name, platform="merscope", out=tmp_path / "out")


def test_no_transcripts_no_cells_and_one_stain(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "raw", height=40, width=30, planes=1, stains=("DAPI",), n=0, cells="none")
    sample, image, points = run(tmp_path / "raw", tmp_path / "out")
    assert image.shape == (1, 40, 30)
    assert len(points) == sample.transcripts["total"] == sample.n_vendor_cells == 0
    assert sample.membranes == []
    assert not (tmp_path / "out" / "vendor_cells.parquet").exists()
    import spatialdata

    assert "vendor_cells" not in spatialdata.read_zarr(tmp_path / "out" / "s.zarr").shapes


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "raw")
    with open(tmp_path / "raw" / "detected_transcripts.csv", "a") as stream:
        stream.write("1,2,3\n")
    with pytest.raises(InputError, match="wrong number of columns"):
        run(tmp_path / "raw", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    fx.cosmx(tmp_path / "raw")
    hashes = []
    for name in ("a", "b"):
        run(tmp_path / "raw", tmp_path / name, "cosmx")
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        hashes.append({str(p.relative_to(tmp_path / name)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert hashes[0] == hashes[1]
    assert not any(".scratch" in name or ".part" in name for name in hashes[0])


@pytest.mark.parametrize("generation", ["A", "B", "C"])
@pytest.mark.parametrize("flip", ["none", "y", "x", "xy"])
def test_cosmx_is_stitched_as_its_images_lie(tmp_path: Path, generation: str, flip: str) -> None:
    truth = fx.cosmx(tmp_path / "raw", generation=generation, flip=flip)
    sample, image, points = run(tmp_path / "raw", tmp_path / "out", "cosmx")
    assert sample.details["generation"] == generation
    assert sample.details["orientation"]["flip"] == flip
    assert sample.details["orientation"]["agreement"][flip] == 1
    assert [(s.name, s.role) for s in sample.stains] == [("DNA", "nucleus"), ("CD298/B2M", "membrane"), ("PanCK", "membrane")]
    np.testing.assert_array_equal(image, truth["mosaic"])
    pixel = apply_affine(sample.affine, points[["x", "y"]].to_numpy())
    np.testing.assert_allclose(pixel, truth["true"], atol=1e-6)
    assert sample.pixel_size_um == pytest.approx(0.120280945, rel=1e-6)
    cells = gpd.read_parquet(tmp_path / "out" / "vendor_cells.parquet").set_index("cell_id")
    assert sorted(cells.index) == sorted(name for name, _ in truth["rings"])
    for name, ring in truth["rings"]:
        low, high = ring.min(0) * sample.pixel_size_um, ring.max(0) * sample.pixel_size_um
        np.testing.assert_allclose(cells.loc[name, "geometry"].bounds, [*low, *high], atol=1e-6)
    assert sample.controls == ["NegPrb3", "Negative01", "SystemControl12"]
    assigned = points["vendor_cell"].notna().to_numpy()
    assert (assigned == (truth["table"]["cell_ID"] > 0).to_numpy()).all()
    assert points.loc[assigned, "vendor_cell"].isin(cells.index).all()


def test_cosmx_shift_between_positions_and_transcripts_is_found(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path / "raw", shift=-120.0)
    sample, image, points = run(tmp_path / "raw", tmp_path / "out", "cosmx")
    np.testing.assert_array_equal(image, truth["mosaic"])
    np.testing.assert_allclose(apply_affine(sample.affine, points[["x", "y"]].to_numpy()), truth["true"], atol=1e-6)
    assert sample.details["orientation"]["offset_against_positions_px"][1] == pytest.approx(-120)
    assert any("120 px" in w for w in sample.details["warnings"])


def test_cosmx_overlaps_belong_to_the_lowest_field_of_view(tmp_path: Path) -> None:
    fx.cosmx(tmp_path / "raw", overlap=10)
    folder = tmp_path / "raw" / "CellStatsDir" / "Morphology2D"
    for fov, value in ((1, 100), (2, 200), (3, 300), (4, 400)):
        path = next(folder.glob(f"*_F{fov:05d}.TIF"))
        with tifffile.TiffFile(path) as tif:
            text, pages = tif.pages[0].description, tif.asarray()
        pages[:] = value
        if fov == 1:
            pages[:, :, -4:] = 0  # an empty rim does not hide its neighbour
        with tifffile.TiffWriter(path) as out:
            for i, page in enumerate(pages):
                out.write(page, description=text if i == 0 else None, metadata=None)
    _, image, _ = run(tmp_path / "raw", tmp_path / "out", "cosmx")
    assert image.shape == (3, 230, 310)
    assert (image[0, 50, 150:156] == 100).all()
    assert (image[0, 50, 156:170] == 200).all()
    assert (image[0, 110:120, 20] == 100).all()
    assert (image[0, 120:, 20] == 300).all()


def test_cosmx_fovs_select_a_part_of_the_slide(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path / "raw")
    sample, image, points = run(tmp_path / "raw", tmp_path / "out", "cosmx", fovs="2;4")
    np.testing.assert_array_equal(image, truth["mosaic"][:, :, 160:])
    wanted = truth["table"]["fov"].isin([2, 4]).to_numpy()
    assert points["transcript_id"].tolist() == np.flatnonzero(wanted).tolist(), "row numbers of the whole table"
    assert sample.details["fovs"] == [2, 4]
    assert set(gpd.read_parquet(tmp_path / "out" / "vendor_cells.parquet")["cell_id"].str.split("_").str[1]) == {"2", "4"}


def test_cosmx_phantom_fields_of_view_are_told(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path / "raw")
    next((tmp_path / "raw").rglob("*_F00004.TIF")).unlink()
    (tmp_path / "raw" / "CellStatsDir" / "FOV00004" / "CellLabels_F00004.tif").unlink()
    sample, image, points = run(tmp_path / "raw", tmp_path / "out", "cosmx")
    assert any("a position but no image" in w and ": 4." in w for w in sample.details["warnings"])
    expected = truth["mosaic"].copy()
    expected[:, 120:, 160:] = 0
    np.testing.assert_array_equal(image, expected)
    assert len(points) == len(truth["table"])


def test_cosmx_without_labels_takes_polygons_and_judges_the_flip_by_density(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path / "raw", labels=False, polygons=True)
    # Transcripts where the nuclei are.
    bright = truth["mosaic"][0] > 2500
    table = truth["table"]
    rng = np.random.default_rng(1)
    for fov in range(1, 5):
        top, left = (fov - 1) // 2 * 120, (fov - 1) % 2 * 160
        places = np.argwhere(bright[top : top + 120, left : left + 160])
        rows = table.index[table["fov"] == fov]
        pick = places[rng.integers(0, len(places), len(rows))]
        origin_x = (table.loc[rows, "x_global_px"] - table.loc[rows, "x_local_px"]).to_numpy()
        origin_y = (table.loc[rows, "y_global_px"] + table.loc[rows, "y_local_px"]).to_numpy()
        table.loc[rows, "x_local_px"], table.loc[rows, "y_local_px"] = pick[:, 1] + 0.5, 120 - pick[:, 0] - 0.5
        table.loc[rows, "x_global_px"], table.loc[rows, "y_global_px"] = origin_x + pick[:, 1] + 0.5, origin_y - 120 + pick[:, 0] + 0.5
    fx.write_table(table, tmp_path / "raw" / "S1_tx_file.csv.gz")
    sample, image, _ = run(tmp_path / "raw", tmp_path / "out", "cosmx")
    np.testing.assert_array_equal(image, truth["mosaic"])
    assert sample.details["orientation"]["evidence"] == "density"
    assert sample.details["orientation"]["flip"] == "y"
    assert any("Without labels" in w for w in sample.details["warnings"])
    cells = gpd.read_parquet(tmp_path / "out" / "vendor_cells.parquet").set_index("cell_id")
    for name, ring in truth["rings"]:
        np.testing.assert_allclose(cells.loc[name, "geometry"].bounds, np.r_[ring.min(0), ring.max(0)] * sample.pixel_size_um, atol=1e-6)


def test_cosmx_composite_gives_one_nucleus_stain_and_no_membrane(tmp_path: Path) -> None:
    fx.cosmx(tmp_path / "raw", generation="A", images="composite")
    sample, image, _ = run(tmp_path / "raw", tmp_path / "out", "cosmx", pixel_size_um=0.18)
    assert [(s.name, s.role) for s in sample.stains] == [("DAPI", "nucleus"), ("composite_red", "other"), ("composite_green", "other")]
    from PIL import Image

    first = np.asarray(Image.open(tmp_path / "raw" / "CellComposite" / "CellComposite_F001.png"))
    np.testing.assert_array_equal(image[:, :120, :160], np.moveaxis(first[..., [2, 0, 1]], -1, 0))
    assert sample.pixel_size_um == 0.18
    chosen, image, _ = run(tmp_path / "raw", tmp_path / "out", "cosmx", pixel_size_um=0.18, membrane_stains="composite_green")
    assert [(s.name, s.role) for s in chosen.stains][:2] == [("DAPI", "nucleus"), ("composite_green", "membrane")]
    np.testing.assert_array_equal(image[1, :120, :160], first[..., 1])


def test_cosmx_binned_images_lie_over_their_labels(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path / "raw")
    for path in (tmp_path / "raw").rglob("*.TIF"):
        with tifffile.TiffFile(path) as tif:
            text, pages = tif.pages[0].description, tif.asarray()
        small = pages.reshape(3, 60, 2, 80, 2).mean((2, 4)).astype(np.uint16)
        with tifffile.TiffWriter(path) as out:
            for i, page in enumerate(small):
                out.write(page, description=text.replace("0.120280945", "0.24056189") if i == 0 else None, metadata=None)
    sample, image, points = run(tmp_path / "raw", tmp_path / "out", "cosmx")
    assert image.shape == (3, 120, 160)
    assert sample.pixel_size_um == pytest.approx(0.24056189, rel=1e-6)
    np.testing.assert_allclose(apply_affine(sample.affine, points[["x", "y"]].to_numpy()), truth["true"] / 2, atol=1e-6)
    assert any("binned by 2" in w for w in sample.details["warnings"])


@pytest.mark.parametrize(("platform", "generation"), [("merscope", "hdf5"), ("merscope", "parquet"), ("cosmx", "A"), ("cosmx", "B"), ("cosmx", "C")])
def test_simulated_truth_lies_where_convert_puts_the_transcripts(tmp_path: Path, platform: str, generation: str) -> None:
    """The simulator is written apart from the readers: what both agree on is right or wrong in the same way only by the formats."""
    import shapely

    from istseg.stages import simulate

    simulate.run(
        out=tmp_path / "sim", platform=platform, width_um=70, height_um=60, planes=2, stains="Cellbound1", degraded_fraction=0, degraded_contour=0.5,
        transcripts_per_um2=1, empty_fraction=0.1, generation=generation, seed=1,
    )  # fmt: skip
    sample, _, points = run(tmp_path / "sim" / "raw", tmp_path / "out", platform)
    truth = pd.read_parquet(tmp_path / "sim" / "truth" / "transcripts.parquet").set_index("transcript_id").reindex(points["transcript_id"])
    cells = gpd.read_parquet(tmp_path / "sim" / "truth" / "cells.parquet").set_index("cell_id").geometry
    xy = points[["x", "y"]].to_numpy()
    pixel = apply_affine(sample.affine, xy)
    inside = truth["cell_id"].isin(cells.index).to_numpy() & ((pixel > 0) & (pixel < [sample.width_px, sample.height_px])).all(axis=1)
    assert inside.sum() > 500
    polygons = cells.reindex(truth.loc[inside, "cell_id"]).to_numpy()

    def share(shift: tuple[float, float]) -> float:
        return shapely.contains_xy(polygons, *(xy[inside] + shift).T).mean()

    assert share((0, 0)) > 0.85  # some diffuse out of their cell
    assert all(share((0, 0)) > share(shift) + 0.02 for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)))
    assert sample.n_vendor_cells > 10


@pytest.mark.real_data
def test_real_brain(tmp_path: Path) -> None:
    raw = fx.real_data() / "merscope_mouse_brain"
    sample, image, points = run(raw, tmp_path / "out")
    assert image.shape == (4, 752, 1860)
    assert sample.n_vendor_cells == 46
    assert sample.transcripts["total"] == len(points) == 20750
    assert sample.transcripts["outside_image"] == 0
    assert sample.details["density_evidence"]["best"] == "none"
    assert sample.details["density_evidence"]["correlation"]["none"] > 0.6
    plane = sample.details["planes"]["planes"]["DAPI"][0]
    np.testing.assert_array_equal(image[1], tifffile.imread(raw / "region_0" / "images" / f"mosaic_PolyT_z{plane}.tif"))
    cells = gpd.read_parquet(tmp_path / "out" / "vendor_cells.parquet")
    assert cells["cell_id"].str.len().between(36, 39).all()
    derived = pd.read_parquet(raw / "region_0" / "cell_boundaries_derived.parquet")
    assert derived["EntityID"].nunique() == len(cells)


@pytest.mark.real_data
def test_real_liver(tmp_path: Path) -> None:
    sample, _, points = run(fx.real_data() / "merscope_mouse_liver" / "region_0", tmp_path / "out")
    assert [(s.name, s.role) for s in sample.stains] == [("DAPI", "nucleus"), ("Cellbound1", "membrane"), ("Cellbound2", "membrane")]
    assert sample.transcripts["total"] - sample.transcripts["outside_image"] == 3334
    assert len(points) == 5936
    assert sample.n_vendor_cells == 94


@pytest.mark.real_data
def test_real_lung_orientation_scores_98_9_percent(tmp_path: Path) -> None:
    import shapely

    sample, image, points = run(fx.real_data() / "cosmx_human_lung" / "Lung12", tmp_path / "out", "cosmx")
    orientation = sample.details["orientation"]
    assert orientation["flip"] == "y"
    assert round(orientation["agreement"]["y"], 3) == 0.989
    assert orientation["agreement"]["none"] < 0.1
    assert image.shape == (3, 3648, 10944), "FOV 3 lies right of FOV 2, without gap"
    cells = gpd.read_parquet(tmp_path / "out" / "vendor_cells.parquet")
    assert len(cells) == 120
    # The chain as a whole: transcripts in µm lie in the µm polygon of their vendor cell.
    assigned = points[points["vendor_cell"].notna()]
    polygon = cells.set_index("cell_id").geometry.reindex(assigned["vendor_cell"]).to_numpy()
    assert shapely.contains_xy(polygon, assigned["x"].to_numpy(), assigned["y"].to_numpy()).mean() > 0.98


MEMORY = """
import sys
from pathlib import Path
from istseg.stages import convert
convert.run(raw=Path(sys.argv[1]), sample="s", platform="merscope", out=Path(sys.argv[2]), z_planes="0")
# Its own peak: ru_maxrss begins with that of the process that started it.
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_mosaic(tmp_path: Path) -> None:
    peaks = {}
    for side, n in ((4096, 100_000), (8192, 400_000)):
        raw = tmp_path / f"raw{side}"
        fx.merscope(raw, height=64, width=64, planes=1, stains=("DAPI", "PolyT"), n=10, cells="none")
        block = np.tile(fx.pattern(512, 512), (side // 512, side // 512))
        for stain in ("DAPI", "PolyT"):
            tifffile.imwrite(raw / "images" / f"mosaic_{stain}_z0.tif", block)
        rng = np.random.default_rng(0)
        micron = side * fx.PIXEL_UM
        frame = {"global_x": 100 + micron * rng.random(n), "global_y": 2000 + micron * rng.random(n), "global_z": 0, "gene": rng.choice(["A", "B"], n)}
        pd.DataFrame(frame).to_csv(raw / "detected_transcripts.csv", index=False)
        done = subprocess.run([sys.executable, "-c", MEMORY, raw, tmp_path / f"out{side}"], capture_output=True, text=True, check=True)
        peaks[side] = int(done.stdout.split()[-1])
    assert peaks[8192] < 1.3 * peaks[4096], peaks
