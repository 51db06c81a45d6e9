"""Traps of raw folders that no other test reproduces, one by one (docs/formats.md lists all of them with their tests)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

import raw_fixtures as fx
from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError
from istseg.raw import open_raw
from istseg.raw.base import Options
from istseg.stages import preflight


def inspected(platform: str, root: Path, **options):
    reader = open_raw(platform, root, Options(**options))
    return reader, reader.inspect()


def mosaic(reader) -> np.ndarray:
    reader.choose_planes()
    return np.concatenate([strip.copy() for strip in reader.strips(64, Path("."))], axis=1)


def rewrite(path: Path, change) -> None:
    fx.write_table(change(pd.read_csv(path)), path)


# MERSCOPE


def test_merscope_manifest_missing_nominal_or_of_another_export(tmp_path: Path) -> None:
    truth = fx.merscope(tmp_path)
    _, facts = inspected("merscope", tmp_path)
    np.testing.assert_array_equal(facts.micron_to_pixel, truth["matrix"])
    manifest = tmp_path / "images" / "manifest.json"
    manifest.write_text(json.dumps({"microns_per_pixel": 0.11, "mosaic_height_pixels": 300, "mosaic_width_pixels": 400, "bbox_microns": [0, 0, 1, 1]}))
    _, facts = inspected("merscope", tmp_path)
    assert facts.pixel_size_um == pytest.approx(fx.PIXEL_UM, rel=1e-3), "the transform counts"
    assert any("0.11 µm per pixel" in w for w in facts.warnings)
    manifest.write_text(json.dumps({"mosaic_height_pixels": 301, "mosaic_width_pixels": 400}))
    with pytest.raises(InputError, match="mixes files of two exports"):
        inspected("merscope", tmp_path)


def test_merscope_table_of_an_old_run_without_cell_id_and_with_whole_planes(tmp_path: Path) -> None:
    truth = fx.merscope(tmp_path)
    frame = truth["transcripts"].drop(columns=["cell_id", "transcript_id"]).assign(global_z=truth["transcripts"]["global_z"].astype(int), barcode_id=7, fov=0)
    fx.write_table(frame, tmp_path / "detected_transcripts.csv")
    reader, _ = inspected("merscope", tmp_path)
    table = next(reader.transcripts())
    assert table["vendor_cell"].null_count == len(frame)
    assert table["transcript_id"].to_pylist() == list(range(len(frame))), "fov and barcode_id name no row"
    assert set(table["z"].to_pylist()) == {0.0, 1.0, 2.0}


def test_merscope_anisotropic_scale_is_kept(tmp_path: Path) -> None:
    truth = fx.merscope(tmp_path)
    matrix = truth["matrix"].copy()
    matrix[1] *= 1.004
    np.savetxt(tmp_path / "images" / "micron_to_mosaic_pixel_transform.csv", matrix)
    _, facts = inspected("merscope", tmp_path)
    np.testing.assert_allclose(facts.micron_to_pixel, matrix)


# The orientation of images without vendor labels


def on_the_stains(root: Path, flip: str, seed: int = 0) -> None:
    """Move the transcripts of a folder to where the stains of the flipped image are."""
    truth = fx.merscope(root, height=700, width=800, planes=1, stains=("DAPI", "PolyT"), n=10, cells="none")
    rng = np.random.default_rng(seed)
    image = fx.pattern(700, 800, 3, 60)
    tifffile.imwrite(root / "images" / "mosaic_PolyT_z0.tif", image)
    seen = image[:: -1 if "y" in flip else 1, :: -1 if "x" in flip else 1]
    weights = (seen.astype(float) - seen.min()).ravel()
    at = rng.choice(weights.size, 8_000, p=weights / weights.sum())
    px, py = at % 800 + 0.5, at // 800 + 0.5
    matrix = truth["matrix"]
    columns = {"global_x": (px - matrix[0, 2]) / matrix[0, 0], "global_y": (py - matrix[1, 2]) / matrix[1, 1], "global_z": 0, "fov": 0}
    fx.write_table(pd.DataFrame({**columns, "gene": rng.choice(["A", "B"], len(at))}), root / "detected_transcripts.csv")


def checked(root: Path, **parameters) -> dict:
    (root / "sheet.csv").write_text("sample,platform,path\ns1,merscope,raw\n")
    schema = Path(__file__).resolve().parents[2] / "nextflow_schema.json"
    (root / "params.json").write_text(json.dumps({"input": "sheet.csv", **parameters}))
    preflight.run(samplesheet=root / "sheet.csv", out=root / "out", params=root / "params.json", schema=schema)
    return json.loads((root / "out" / "preflight.json").read_text())["samples"][0]


@pytest.mark.parametrize("flip", ["x", "y", "xy"])
def test_a_flipped_mosaic_stops_preflight_with_the_figures(tmp_path: Path, flip: str) -> None:
    on_the_stains(tmp_path / "raw", flip)
    with pytest.raises(InputError, match=rf"when it is flipped by {flip} \(correlation with the stains in \d squares: none .*--check_orientation false"):
        checked(tmp_path)
    found = checked(tmp_path, check_orientation=False)
    evidence = found["evidence"]["orientation"]
    assert evidence["best"] == flip and evidence["suspicious"] and evidence["correlation"][flip] > evidence["correlation"]["none"] + 0.15
    assert any(f"flipped by {flip}" in w for w in found["warnings"])


def test_a_sound_mosaic_passes_and_its_evidence_is_recorded(tmp_path: Path) -> None:
    on_the_stains(tmp_path / "raw", "none")
    evidence = checked(tmp_path)["evidence"]["orientation"]
    assert evidence["evidence"] == "density" and evidence["best"] == "none" and not evidence["suspicious"]
    assert evidence["correlation"]["none"] > 0.4 and evidence["squares"] >= 1


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["merscope_mouse_brain", "merscope_mouse_liver"])
def test_real_mosaics_are_not_suspected(name: str) -> None:
    from istseg.raw.agreement import local_evidence

    reader, facts = inspected("merscope", fx.real_data() / name / "region_0")
    table = reader.transcript_sample()
    pixel = apply_affine(facts.micron_to_pixel, np.column_stack([table["x"].to_numpy(), table["y"].to_numpy()]))
    evidence = local_evidence(reader.pixels, pixel, (facts.height_px, facts.width_px), facts.pixel_size_um)
    assert evidence["best"] == "none" and not evidence["suspicious"], evidence


# CosMx


def test_cosmx_two_samples_of_one_slide_share_no_row_and_no_pixel(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path)
    (one, _), (two, _) = (inspected("cosmx", tmp_path, fovs=frozenset(fovs)) for fovs in ({1, 2}, {3, 4}))
    rows = [{i for block in reader.transcripts() for i in block["transcript_id"].to_pylist()} for reader in (one, two)]
    assert not rows[0] & rows[1] and len(rows[0] | rows[1]) == len(truth["table"])
    np.testing.assert_array_equal(np.concatenate([mosaic(one), mosaic(two)], axis=1), truth["mosaic"])
    assert not set(one.vendor_cells(None)[0]) & set(two.vendor_cells(None)[0])


def test_cosmx_positions_from_latest_fovs_of_a_raw_tree(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path, generation="B")
    path = tmp_path / "S1_fov_positions_file.csv.gz"
    stage = pd.read_csv(path)[["Slide", "X_mm", "Y_mm", "Z_mm", "ROI", "FOV", "Order"]]
    stage.insert(4, "ZOffset_mm", -2.0)
    (tmp_path / "RunSummary").mkdir()
    stage.to_csv(tmp_path / "RunSummary" / "latest.fovs.csv", header=False, index=False)
    path.unlink()
    reader, facts = inspected("cosmx", tmp_path)
    assert any("those of latest.fovs.csv" in w for w in facts.warnings)
    np.testing.assert_array_equal(mosaic(reader), truth["mosaic"])
    table = next(reader.transcripts())
    pixel = apply_affine(facts.micron_to_pixel, np.column_stack([table["x"].to_numpy(), table["y"].to_numpy()]))
    np.testing.assert_allclose(pixel, truth["true"], atol=1e-6)


@pytest.mark.parametrize("flip", ["x", "xy", "none"])
def test_cosmx_export_bug_turned_images_are_laid_right_by_their_labels(tmp_path: Path, flip: str) -> None:
    """Images turned by 180° (x against the usual y) or mirrored, and shifted by one field of view at the same time."""
    truth = fx.cosmx(tmp_path, flip=flip, shift=-120.0)
    reader, facts = inspected("cosmx", tmp_path)
    assert facts.details["orientation"]["flip"] == flip
    np.testing.assert_array_equal(mosaic(reader), truth["mosaic"])
    table = next(reader.transcripts())
    pixel = apply_affine(facts.micron_to_pixel, np.column_stack([table["x"].to_numpy(), table["y"].to_numpy()]))
    np.testing.assert_allclose(pixel, truth["true"], atol=1e-6)


def test_cosmx_five_pages_named_by_their_json_in_any_order(tmp_path: Path) -> None:
    fx.cosmx(tmp_path, labels=True)
    reagents = [{"BiologicalTarget": t, "Fluorophore": {"ChannelId": c}} for t, c in zip(["Histone", "rRNA", "GFAP", "DNA", "PanCK"], "BGYUR", strict=True)]
    text = json.dumps({"Nested": {"ChannelOrder": "BGYRU"}, "MorphologyKit": {"MorphologyReagents": reagents}, "PixelSize_um": 0.120280945})
    for path in tmp_path.rglob("*.TIF"):
        pages = tifffile.imread(path)
        with tifffile.TiffWriter(path) as tif:
            for i in range(5):
                tif.write(pages[i % 3] + i, description=text if i == 0 else None, compression="lzw", metadata=None)
    _, facts = inspected("cosmx", tmp_path)
    assert [(c.name, c.role) for c in facts.channels] == [
        ("DNA", "nucleus"), ("rRNA", "membrane"), ("GFAP", "membrane"), ("PanCK", "membrane"), ("Histone", "other"),
    ]  # fmt: skip


def test_cosmx_raw_tree_of_atomx_2_with_its_deep_folders(tmp_path: Path) -> None:
    """D as far as it is documented: the same tables and images below DecodedFiles/<slide>/<run>/, flat files beside them."""
    truth = fx.cosmx(tmp_path / "made")
    deep = tmp_path / "raw" / "DecodedFiles" / "Slide1" / "20250101_120000_S1"
    deep.mkdir(parents=True)
    shutil.move(tmp_path / "made" / "CellStatsDir", deep / "CellStatsDir")
    (tmp_path / "raw" / "flatFiles" / "Slide1").mkdir(parents=True)
    for path in (tmp_path / "made").glob("S1_*"):
        shutil.move(path, tmp_path / "raw" / "flatFiles" / "Slide1" / path.name)
    reader, facts = inspected("cosmx", tmp_path / "raw")
    np.testing.assert_array_equal(mosaic(reader), truth["mosaic"])
    assert facts.details["fovs"] == [1, 2, 3, 4]


def test_cosmx_columns_of_cell_ids_in_three_spellings_and_doubled_rows(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path)
    path = tmp_path / "S1_tx_file.csv.gz"
    rewrite(path, lambda t: pd.concat([t, t.iloc[:30]]).rename(columns={"cell_ID": "cellID"}).assign(cell_id="c_1_1_1", cell="c_1_1_1"))
    reader, _ = inspected("cosmx", tmp_path)
    table = next(reader.transcripts())
    assert table.num_rows == len(truth["table"]) + 30, "rows of the raw table are never dropped silently"
    names = table["vendor_cell"].to_pylist()
    expected = [f"c_{f}_{c}" if c else None for f, c in truth["table"][["fov", "cell_ID"]].itertuples(index=False)]
    assert names[: len(expected)] == expected


def test_cosmx_global_coordinates_as_ints_and_in_scientific_notation(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path, generation="A")
    lines = (tmp_path / "S1_tx_file.csv").read_text().splitlines()
    at = lines[0].split(",").index("y_global_px")
    for i in range(1, len(lines)):
        cells = lines[i].split(",")
        cells[at] = f"{float(cells[at]):.8e}" if i % 2 else cells[at]
        lines[i] = ",".join(cells)
    (tmp_path / "S1_tx_file.csv").write_text("\n".join(lines) + "\n")
    reader, facts = inspected("cosmx", tmp_path, pixel_size_um=0.18)
    np.testing.assert_array_equal(mosaic(reader), truth["mosaic"])
    assert facts.details["orientation"]["global_against_local"] == {"x": 1, "y": 1}


def test_cosmx_planes_from_minus_one_to_eleven_stay(tmp_path: Path) -> None:
    fx.cosmx(tmp_path)
    rewrite(tmp_path / "S1_tx_file.csv.gz", lambda t: t.assign(z=np.arange(len(t)) % 13 - 1))
    reader, _ = inspected("cosmx", tmp_path)
    assert set(next(reader.transcripts())["z"].to_pylist()) == {float(z) for z in range(-1, 12)}


def test_cosmx_images_without_positions_and_positions_without_images(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path)
    rewrite(tmp_path / "S1_fov_positions_file.csv.gz", lambda t: t[t["FOV"] != 2])
    next(tmp_path.rglob("*_F00003.TIF")).unlink()
    reader, facts = inspected("cosmx", tmp_path)
    assert facts.details["fovs"] == [1, 4]
    assert any("image but no position are left out: 2" in w for w in facts.warnings) and any("position but no image" in w for w in facts.warnings)
    picture = mosaic(reader)
    np.testing.assert_array_equal(picture[:, :120, :160], truth["mosaic"][:, :120, :160])
    assert not picture[:, :120, 160:].any()
