"""CosMx: folders as they come, pixel size, names of channels, orientation that cannot be settled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raw_fixtures as fx
from istseg.errors import InputError
from istseg.raw import agreement, open_raw
from istseg.raw.base import Options
from istseg.raw.cosmx_files import channel_names, find_layout, search
from istseg.raw.cosmx_geometry import fit_axis, place


def inspected(root: Path, **options):
    reader = open_raw("cosmx", root, Options(**options))
    return reader, reader.inspect()


def rewrite(path: Path, change) -> None:
    fx.write_table(change(pd.read_csv(path)), path)


def test_the_latest_segmentation_is_taken(tmp_path: Path) -> None:
    fx.cosmx(tmp_path)
    stats = tmp_path / "CellStatsDir"
    for number in (1, 2, 10):
        for fov in range(1, 5):
            target = stats / f"Segmentation_0b5e_{number:03d}" / f"FOV{fov:05d}"
            target.mkdir(parents=True)
            (target / f"CellLabels_F{fov:05d}.tif").write_bytes((stats / f"FOV{fov:05d}" / f"CellLabels_F{fov:05d}.tif").read_bytes())
    problems, warnings = [], []
    layout = find_layout(tmp_path, problems, warnings)
    assert problems == []
    assert all("Segmentation_0b5e_010" in str(path) for path in layout.labels.values())
    assert any("several segmentations" in w for w in warnings)


def test_names_of_files_in_any_case_and_width(tmp_path: Path) -> None:
    fx.cosmx(tmp_path)
    folder = tmp_path / "CellStatsDir" / "Morphology2D"
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("_F0000", "_F00").replace(".TIF", ".tif"))
    assert set(find_layout(tmp_path, [], []).images) == {1, 2, 3, 4}


def test_links_that_loop_end(tmp_path: Path) -> None:
    fx.cosmx(tmp_path)
    (tmp_path / "CellStatsDir" / "again").symlink_to(tmp_path)
    _, facts = inspected(tmp_path)
    assert facts.details["fovs"] == [1, 2, 3, 4]


def test_pixel_size_sources_and_their_order(tmp_path: Path) -> None:
    fx.cosmx(tmp_path, pixel_um=0.1228)
    config = tmp_path / "RunSummary"
    config.mkdir()
    (config / "20240101_S1_ExptConfig.txt").write_text("Instrument: x\nImPixel_nm: 168.0\n")
    _, facts = inspected(tmp_path)
    assert facts.pixel_size_um == pytest.approx(0.1228, rel=1e-6)
    assert facts.details["pixel_size_from"] == "px and mm of the positions"
    assert any("0.16800" in w for w in facts.warnings), "sources that disagree are told"
    rewrite(tmp_path / "S1_fov_positions_file.csv.gz", lambda t: t.drop(columns=["x_global_mm", "y_global_mm"]))
    _, facts = inspected(tmp_path)
    assert facts.pixel_size_um == pytest.approx(0.168)
    _, facts = inspected(tmp_path, pixel_size_um=0.2)
    assert facts.pixel_size_um == 0.2
    (config / "20240101_S1_ExptConfig.txt").unlink()
    _, facts = inspected(tmp_path)
    assert facts.details["pixel_size_from"] == "TIFF metadata"


def test_pixel_size_of_generation_b_comes_from_mm_against_px(tmp_path: Path) -> None:
    fx.cosmx(tmp_path, generation="B", pixel_um=0.1215)
    reader, facts = inspected(tmp_path)
    assert facts.pixel_size_um == pytest.approx(0.1215, rel=1e-6)
    assert facts.details["pixel_size_from"] == "mm of the positions against px of the transcripts"


def test_a_legacy_frame_of_any_other_size_needs_the_pixel_size(tmp_path: Path) -> None:
    fx.cosmx(tmp_path, generation="A", images="composite")
    with pytest.raises(InputError, match="no file says the pixel size"):
        inspected(tmp_path)


def test_channel_names_from_metadata_dictionary_or_none(tmp_path: Path) -> None:
    meta = json.loads('{"ChannelOrder": "BGYRU", "Kit": {"MorphologyReagents": [{"BiologicalTarget": "DNA", "Fluorophore": {"ChannelId": "U"}}]}}')
    assert channel_names(meta, None, 5, []) == ["B", "G", "Y", "R", "DNA"]
    assert search(meta, "nothing") is None
    (tmp_path / "d.txt").write_text("ChannelID\tBiologicalTarget\nB\tCD298\nG\tPanCK\nU\tDNA\n")
    assert channel_names({"ChannelOrder": "BGU"}, tmp_path / "d.txt", 3, []) == ["CD298", "PanCK", "DNA"]
    warnings: list[str] = []
    assert channel_names({}, None, 2, warnings) == ["channel_1", "channel_2"]
    assert len(warnings) == 1


def test_channels_without_names_ask_for_the_nucleus_stain(tmp_path: Path) -> None:
    import tifffile

    fx.cosmx(tmp_path)
    for path in tmp_path.rglob("*.TIF"):
        pages = tifffile.imread(path)
        with tifffile.TiffWriter(path) as tif:
            for page in pages:
                tif.write(page, metadata=None)
    with pytest.raises(InputError, match="name it as nucleus_stain. The stains are: channel_1, channel_2, channel_3"):
        inspected(tmp_path)
    _, facts = inspected(tmp_path, nucleus_stain="channel_3", membrane_stains=("channel_1",))
    assert [(c.name, c.role) for c in facts.channels] == [("channel_3", "nucleus"), ("channel_1", "membrane"), ("channel_2", "other")]


def test_one_bad_field_of_view_among_good_ones_is_told(tmp_path: Path) -> None:
    import tifffile

    fx.cosmx(tmp_path, grid=(3, 4), n=600)
    path = next(tmp_path.rglob("CellLabels_F00001.tif"))
    labels = tifffile.imread(path)
    # A tenth of the labels of one field of view are wrong: below 90 % there, above over all.
    labels[labels == labels.max()] = 99
    tifffile.imwrite(path, labels, compression="zlib")
    table = tmp_path / "S1_tx_file.csv.gz"
    rewrite(table, lambda t: t[(t["fov"] != 1) | (np.arange(len(t)) < 600)])
    _, facts = inspected(tmp_path)
    worst = facts.details["orientation"]["agreement_by_fov"]
    assert facts.details["orientation"]["agreement"]["y"] >= 0.9
    assert worst["1"] < 0.9
    assert any("In fields of view 1 " in w for w in facts.warnings)


@pytest.mark.parametrize(("generation", "usual"), [("A", "y"), ("C", "none")])
def test_without_labels_and_without_a_clear_density_the_usual_flip_is_taken_and_told(tmp_path: Path, generation: str, usual: str) -> None:
    """Image rows run against the stage's y in every generation; `y_local` runs with the stage in A and against it in C."""
    fx.cosmx(tmp_path, generation=generation, flip=usual, labels=False, n=3000)
    _, facts = inspected(tmp_path)
    assert facts.details["orientation"]["flip"] == usual
    assert facts.details["orientation"]["evidence"] == "none"
    assert any("tells nothing" in w for w in facts.warnings)
    assert facts.cells_from is None


def test_global_columns_may_be_missing(tmp_path: Path) -> None:
    truth = fx.cosmx(tmp_path)
    rewrite(tmp_path / "S1_tx_file.csv.gz", lambda t: t.drop(columns=["x_global_px", "y_global_px"]))
    reader, facts = inspected(tmp_path)
    assert any("usual for generation C" in w for w in facts.warnings)
    table = next(reader.transcripts())
    # With what generation C usually does the mosaic is still right.
    np.testing.assert_allclose(table["x"].to_numpy() / facts.pixel_size_um, truth["true"][:, 0], atol=1e-6)
    np.testing.assert_allclose(table["y"].to_numpy() / facts.pixel_size_um, truth["true"][:, 1], atol=1e-6)


def test_transcripts_of_unknown_fields_of_view_have_no_place(tmp_path: Path) -> None:
    fx.cosmx(tmp_path)
    rewrite(tmp_path / "S1_tx_file.csv.gz", lambda t: t.assign(fov=t["fov"].where(t.index != 5, 99)))
    reader, _ = inspected(tmp_path)
    x = next(reader.transcripts())["x"].to_numpy()
    assert np.flatnonzero(np.isnan(x)).tolist() == [5]


def test_labels_of_float_type_are_read(tmp_path: Path) -> None:
    import tifffile

    fx.cosmx(tmp_path)
    for path in tmp_path.rglob("CellLabels*"):
        tifffile.imwrite(path, tifffile.imread(path).astype(np.float32))
    _, facts = inspected(tmp_path)
    assert facts.details["orientation"]["agreement"]["y"] == 1


def test_fit_of_an_axis() -> None:
    rng = np.random.default_rng(0)
    fov = np.repeat([1, 2, 3], 100)
    local = rng.uniform(0, 4000, 300)
    offsets = np.repeat([-70000.0, 1e5, 3.25], 100)
    fit = fit_axis("y", local, offsets - local, fov)
    assert fit.sign == -1
    assert fit.offsets == pytest.approx({1: -70000.0, 2: 1e5, 3: 3.25})
    mixed = fit_axis("y", local, np.where(fov == 2, offsets + local, offsets - local), fov)
    assert "against it in others" in mixed.problems[0]
    assert "slope 2.0" in fit_axis("x", local, 2 * local, fov).problems[0]
    assert fit_axis("x", local[:5], local[:5], fov[:5]).sign == 0, "too few rows say nothing"


def test_place_rounds_to_whole_pixels_and_transcripts_follow() -> None:
    placement = place({2: 494.4444, 3: 5966.6667}, {2: -160233.33, 3: -160233.33}, (1, 1), "y", (3648, 5472), (3648, 5472), {2, 3})
    assert placement.origin_px == {2: (0, 0), 3: (0, 5472)}
    assert (placement.height_px, placement.width_px) == (3648, 10944)
    x, y = placement.mosaic_px(np.array([3, 2, 7]), np.array([10.5, 0.0, 1.0]), np.array([3648.0, 0.25, 1.0]))
    np.testing.assert_allclose(x[:2], [5482.5, 0])
    np.testing.assert_allclose(y[:2], [0, 3647.75])
    assert np.isnan(x[2])


def test_density_evidence_sees_a_flip_and_stays_silent_without_signal() -> None:
    image = fx.pattern(200, 260, 3, 12)[None]
    rng = np.random.default_rng(0)
    weights = image[0].astype(float) - image.min()
    counts = rng.poisson(weights / weights.mean())
    right = agreement.density_evidence(image, counts)
    assert right["best"] == "none"
    assert not right["suspicious"]
    for name in ("x", "y", "xy"):
        wrong = agreement.density_evidence(agreement.flip(image, name), counts)
        assert wrong["best"] == name
        assert wrong["suspicious"]
    assert not agreement.density_evidence(image, rng.poisson(1.0, counts.shape))["suspicious"]
    assert agreement.density_evidence(image, np.zeros_like(counts)) == {}


def test_a_protein_run_is_refused_with_one_message(tmp_path: Path) -> None:
    fx.cosmx(tmp_path / "slide", "C")
    table = next((tmp_path / "slide").rglob("*_tx_file.csv*"))
    (tmp_path / "slide" / "S1_Protein_exprMat_file.csv").write_text("fov,cell_ID,CD3\n")
    assert open_raw("cosmx", tmp_path / "slide", Options()).inspect(), "an RNA run beside protein tables is read"
    table.unlink()
    with pytest.raises(InputError, match="is a protein run") as refused:
        open_raw("cosmx", tmp_path / "slide", Options()).inspect()
    assert len(refused.value.problems) == 1
