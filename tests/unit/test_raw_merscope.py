"""MERSCOPE: variants of vendor cells, planes that are missing, names of stains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

import raw_fixtures as fx
from istseg.errors import InputError
from istseg.raw import open_raw
from istseg.raw.base import Options, options_of
from istseg.raw.merscope_cells import from_parquet


def inspected(root: Path, **options):
    reader = open_raw("merscope", root, Options(**options))
    return reader, reader.inspect()


def assert_squares(ids: list[str], polygons: list, truth: dict, plane: int, shift: float = 0.01) -> None:
    assert ids == [str(1878901234567890000 + i) for i in range(5)]
    for polygon, ring in zip(polygons, fx.squares_um(truth), strict=True):
        assert polygon.geom_type == "Polygon"
        assert polygon.is_valid
        np.testing.assert_allclose(polygon.bounds, np.r_[ring.min(0), ring.max(0)] + [0, shift * plane, 0, shift * plane], atol=1e-6)


@pytest.mark.parametrize(("wanted", "taken"), [(0, 0), (2, 2), (7, 1), (None, 1)])
def test_the_wanted_plane_or_the_middle_one(tmp_path: Path, wanted: int | None, taken: int) -> None:
    truth = fx.merscope(tmp_path)
    reader, _ = inspected(tmp_path)
    ids, polygons, counts = reader.vendor_cells(wanted)
    assert_squares(ids, polygons, truth, taken)
    assert counts == {}


@pytest.mark.parametrize(
    "name", ["cell_boundaries.parquet", "cellpose_micron_space.parquet", "cellpose_mosaic_space.parquet", "cellpose2_mosaic_space.parquet"]
)
def test_names_say_the_frame(tmp_path: Path, name: str) -> None:
    truth = fx.merscope(tmp_path, cells="none")
    fx.write_parquet_cells(tmp_path / name, truth, in_pixels="mosaic" in name)
    reader, facts = inspected(tmp_path)
    assert facts.cells_from == name
    ids, polygons, _ = reader.vendor_cells(1)
    assert_squares(ids, polygons, truth, 1)
    assert not any("read as" in w for w in facts.warnings)


def test_a_name_that_says_the_wrong_frame_is_overruled_and_told(tmp_path: Path) -> None:
    truth = fx.merscope(tmp_path, cells="none")
    fx.write_parquet_cells(tmp_path / "cell_boundaries.parquet", truth, in_pixels=True)
    reader, facts = inspected(tmp_path)
    ids, polygons, _ = reader.vendor_cells(1)
    assert_squares(ids, polygons, truth, 1)
    assert any("read as pixels" in w for w in facts.warnings)


def test_geometries_none_empty_invalid_and_multiple(tmp_path: Path) -> None:
    box, far = shapely.box(0, 0, 10, 10), shapely.box(20, 0, 22, 2)
    bow = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 8)])
    donut = shapely.Polygon(box.exterior, [shapely.box(3, 3, 5, 5).exterior])
    rows = [
        ("none", 0, None),
        ("none at 0", 0, None),
        ("none at 0", 1, box),
        ("empty", 0, shapely.Polygon()),
        ("line", 0, shapely.LineString([(0, 0), (9, 9), (3, 3), (1, 2), (5, 5)])),
        ("bow", 0, bow),
        ("parts", 0, shapely.MultiPolygon([far, box])),
        ("donut", 0, donut),
    ]
    frame = pd.DataFrame(
        {"EntityID": [r[0] for r in rows], "ZIndex": [r[1] for r in rows], "Geometry": [None if r[2] is None else shapely.to_wkb(r[2]) for r in rows]}
    )
    frame.to_parquet(tmp_path / "c.parquet")
    ids, polygons, counts, *_ = from_parquet(tmp_path / "c.parquet", 0, np.eye(3), (100, 100))
    found = dict(zip(ids, polygons, strict=True))
    assert set(found) == {"none at 0", "bow", "parts", "donut"}
    assert found["parts"].equals(box)
    assert found["donut"].equals(box), "holes are filled"
    assert found["bow"].is_valid
    assert counts == {"empty": 3, "repaired": 1, "several_parts": 2}


def test_ids_keep_their_digits(tmp_path: Path) -> None:
    truth = fx.merscope(tmp_path, cells="hdf5")
    reader, facts = inspected(tmp_path)
    assert facts.generation == "hdf5 cells"
    ids, polygons, counts = reader.vendor_cells(0)
    assert len(ids) == 5
    assert all(len(i) == 39 and i.isdigit() for i in ids)
    assert counts == {"several_parts": 2}
    areas = sorted(p.area for p in polygons)
    square = shapely.Polygon(fx.squares_um(truth)[0]).area
    np.testing.assert_allclose(areas, square, rtol=1e-3)


def test_a_missing_hdf5_file_leaves_its_cells_out(tmp_path: Path) -> None:
    fx.merscope(tmp_path, cells="hdf5")
    (tmp_path / "cell_boundaries" / "feature_data_1.hdf5").unlink()
    reader, _ = inspected(tmp_path)
    assert len(reader.vendor_cells(0)[0]) == 3


def test_a_damaged_hdf5_file_is_an_error(tmp_path: Path) -> None:
    fx.merscope(tmp_path, cells="hdf5")
    path = tmp_path / "cell_boundaries" / "feature_data_0.hdf5"
    path.write_bytes(path.read_bytes()[:300])
    reader, _ = inspected(tmp_path)
    with pytest.raises(InputError, match="feature_data_0"):
        reader.vendor_cells(0)


def test_float_ids_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"EntityID": [1.9e18], "ZIndex": [0], "Geometry": [shapely.to_wkb(shapely.box(0, 0, 1, 1))]})
    frame.to_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match="have lost digits"):
        from_parquet(tmp_path / "c.parquet", 0, np.eye(3), (10, 10))


def test_run_folder_with_one_region(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "region_3")
    _, facts = inspected(tmp_path)
    assert facts.details["region"] == "region_3"


def test_planes_that_only_some_stains_have(tmp_path: Path) -> None:
    fx.merscope(tmp_path, stains=("DAPI", "PolyT", "Snap25"))
    (tmp_path / "images" / "mosaic_PolyT_z0.tif").unlink()
    for z in (0, 1):
        (tmp_path / "images" / f"mosaic_Snap25_z{z}.tif").unlink()
    reader, facts = inspected(tmp_path)
    chosen = reader.choose_planes()
    best = chosen["planes"]["DAPI"][0]
    assert set(chosen["sharpness"]) == {"1", "2"}, "focus chooses among planes that nucleus and membranes have"
    assert chosen["planes"] == {"DAPI": [best], "PolyT": [best], "Snap25": [2]}
    with pytest.raises(InputError, match="PolyT has no plane 0; it has 1, 2"):
        inspected(tmp_path, z_planes="0")
    _, facts = inspected(tmp_path, z_planes="1")
    assert any("Snap25 has no plane 1" in w for w in facts.warnings), "a stain that the network does not see is no reason to stop"


def test_names_of_stains(tmp_path: Path) -> None:
    fx.merscope(tmp_path, planes=1, stains=("DAPI", "Cellbound3", "CD3-e|x", "Anti_GFP_z"))
    (tmp_path / "images" / "overview.tif").write_text("")
    _, facts = inspected(tmp_path)
    assert [(c.name, c.role) for c in facts.channels] == [("DAPI", "nucleus"), ("Cellbound3", "membrane"), ("Anti_GFP_z", "other"), ("CD3-e|x", "other")]
    assert any("overview.tif" in w for w in facts.warnings)
    _, facts = inspected(tmp_path, nucleus_stain="dapi", membrane_stains=("CD3-e|x",))
    assert [(c.name, c.role) for c in facts.channels][:2] == [("DAPI", "nucleus"), ("CD3-e|x", "membrane")]
    _, facts = inspected(tmp_path, membrane_stains=())
    assert {c.role for c in facts.channels} == {"nucleus", "other"}
    assert not any("No membrane" in w for w in facts.warnings), "no need to tell who asked for it"


def test_transcripts_in_blocks_equal_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from istseg.raw import tables

    truth = fx.merscope(tmp_path, n=3000)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 5000)
    reader, _ = inspected(tmp_path)
    blocks = list(reader.transcripts())
    assert len(blocks) > 10
    assert np.concatenate([b["transcript_id"].to_numpy() for b in blocks]).tolist() == list(range(3000))
    np.testing.assert_allclose(np.concatenate([b["x"].to_numpy() for b in blocks]), truth["transcripts"]["global_x"])


def test_fields_of_view_are_where_their_transcripts_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from istseg.raw import merscope, tables

    truth = fx.merscope(tmp_path, n=3000)
    px, py = truth["px"], truth["py"]
    left = px < np.median(px)
    frame = truth["transcripts"].assign(fov=np.where(left, "7", "12"))
    frame.loc[frame.index[:20], "fov"] = "3"
    fx.write_table(frame, tmp_path / "detected_transcripts.csv")
    monkeypatch.setattr(tables, "BLOCK_BYTES", 20_000)
    reader = open_raw("merscope", tmp_path, Options())
    reader.inspect()
    assert len(list(reader.transcripts())) > 1
    boxes = reader.facts.details["fov_boxes_px"]
    assert list(boxes) == ["7", "12"], "field 3 has too few transcripts to say where it lies"
    rest = np.arange(len(px)) >= 20
    for name, chosen in (("7", left & rest), ("12", ~left & rest)):
        assert boxes[name] == pytest.approx([py[chosen].min(), px[chosen].min(), py[chosen].max(), px[chosen].max()], abs=0.51)
    monkeypatch.setattr(merscope, "_MIN_FIELD", 5000)
    list(reader.transcripts())
    assert reader.facts.details["fov_boxes_px"] == {}


def test_samples_of_a_large_table_come_from_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from istseg.raw import tables

    truth = fx.merscope(tmp_path, n=4000)
    frame = truth["transcripts"].assign(global_z=np.arange(4000.0))
    fx.write_table(frame, tmp_path / "detected_transcripts.csv")
    monkeypatch.setattr(tables, "SAMPLE_BYTES", 8000)
    reader, _ = inspected(tmp_path)
    z = reader.transcript_sample()["z"].to_numpy()
    assert 100 < len(z) < 1000
    assert z.min() == 0
    assert z.max() == 3999
    assert len(np.unique(z)) == len(z)
    assert ((z > 1500) & (z < 2500)).any()


def test_options_are_read_as_people_write_them() -> None:
    options = options_of(membrane_stains=" PolyT ; Cellbound1;PolyT", z_planes="1-5", fovs="1-3; 7", pixel_size_um="0.18")
    assert options == Options(None, ("PolyT", "Cellbound1"), "1-5", frozenset({1, 2, 3, 7}), 0.18)
    assert options_of(membrane_stains="none").membrane_stains == ()
    assert options_of(membrane_stains="", fovs="", z_planes="").membrane_stains is None
    with pytest.raises(InputError) as error:
        options_of(z_planes="x", fovs="3-1", pixel_size_um=90)
    assert len(error.value.problems) == 3


def test_truncated_compressed_tiff_is_seen_by_its_header(tmp_path: Path) -> None:
    fx.merscope(tmp_path, planes=1, tiff={"tile": (128, 128), "compression": "zlib"})
    path = tmp_path / "images" / "mosaic_PolyT_z0.tif"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(InputError, match=r"mosaic_PolyT_z0.tif: (is cut off|cannot be read)"):
        inspected(tmp_path)


@pytest.mark.real_data
def test_focus_of_the_real_samples_is_inside_the_stack() -> None:
    reader, _ = inspected(fx.real_data() / "merscope_mouse_brain" / "region_0")
    chosen = reader.choose_planes()
    best = chosen["planes"]["DAPI"][0]
    assert best in (2, 3), "the tissue is thicker than the stack; its outer planes are blurred"
    assert chosen["sharpness"][str(best)] > 1.2 * chosen["sharpness"]["6"]
