"""Comparators: what they lack is told at once; what foreign programs write is read, in the formats recorded here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from istseg import comparators
from istseg.artifacts import cells as cells_file
from istseg.comparators import METHODS, Settings, Surroundings, baysor, comseg, neutral, proseg
from istseg.comparators.expansion import Expansion
from istseg.errors import InputError


def prepared(folder: Path, n: int = 3) -> neutral.Prepared:
    """What a program was given: `n` nuclei of 2 µm radius 20 µm apart, each with four transcripts in it and four beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    nuclei = [shapely.Point(20.0 * i, 0).buffer(2.0) for i in range(n)]
    rows = [(8 * i + k, 20.0 * i + (k % 4) * 0.5 + 3 * (k > 3), 0.25 * (k % 4), 0.0, "Actb", (k < 4) * (i + 1)) for i in range(n) for k in range(8)]
    pd.DataFrame(rows, columns=["transcript_id", "x", "y", "z", "gene", "prior"]).to_csv(folder / neutral.TRANSCRIPTS, index=False)
    frame = cells_file.frame([f"s_n{i}" for i in range(1, n + 1)], np.array(nuclei, object))
    return neutral.Prepared(folder, {"prior": "nuclei"}, frame)


def test_names_are_each_there_once_and_none_is_none():
    assert comparators.chosen("vendor,proseg,vendor") == ["vendor", "proseg"]
    assert comparators.chosen("none") == []


def test_an_unknown_method_is_told_with_the_nearest():
    with pytest.raises(InputError, match="did you mean proseg"):
        comparators.find("prosec", comparators.PROGRAM)
    with pytest.raises(InputError, match="is no tile comparator"):
        comparators.find("comseg", comparators.TILE)


def test_everything_that_is_missing_is_told_at_once(tmp_path):
    asked = ["vendor", "teacher", *METHODS]
    found = comparators.problems(asked, Surroundings({}, {"nuclei": None, "cyto": None}, tmp_path))
    told = {text.split(":")[0].removeprefix("--compare ") for text in found}
    assert told == {"cellpose", "genesegnet", "proseg", "comseg", "baysor"}
    assert sum("cellpose" in text for text in found) == 2
    assert any("bin/setup_comparators proseg" in text for text in found)
    assert any("--baysor" in text for text in found)


def test_containers_hold_the_programs():
    assert comparators.problems(["proseg", "comseg", "baysor"], Surroundings({}, programs=None)) == []


def test_baysor_must_be_executable(tmp_path):
    program = tmp_path / "baysor"
    program.write_text("#!/bin/sh\n")
    (problem,) = baysor.problems(Surroundings({"baysor": str(program)}, programs=tmp_path))
    assert f"{program} is no file that can be executed" in problem
    program.chmod(0o755)
    assert baysor.problems(Surroundings({"baysor": str(program)}, programs=tmp_path)) == []


def test_expansion_needs_the_teachers_nuclei():
    with pytest.raises(InputError, match="--teacher-labels"):
        METHODS["expansion"].module.make(Settings())
    assert Expansion(Path(), 4.0).method == {"comparator": "expansion", "expansion_um": 4.0}


def test_hulls_hold_their_points_and_seeds():
    xy = np.array([[0, 0], [4, 0], [0, 4], [10, 10], [20, 20], [21, 20]], float)
    numbers = np.array([5, 5, 5, 2, 9, 9])
    found = neutral.hulls(xy, numbers, {2: shapely.box(8, 8, 11, 11)})
    assert sorted(found) == [2, 5, 9]
    assert all(found[n].covers(shapely.Point(p)) for n, p in zip(numbers.tolist(), xy, strict=True))
    assert found[2].covers(shapely.box(8, 8, 11, 11))
    assert found[5].area == pytest.approx(8 + neutral.HULL_MARGIN_UM * (8 + 32**0.5) + np.pi * neutral.HULL_MARGIN_UM**2, rel=0.01)
    assert neutral.hulls(np.zeros((0, 2)), np.zeros(0, int)) == {}


def proseg_output(folder: Path) -> Path:
    """As Proseg 3.2.0 writes it: cell 0 with two parts, cell 1 without voxel, cell 2 without transcript."""
    folder.mkdir()
    rows = {
        "transcript_id": np.array([0, 1, 4, 8, 9, 16], np.uint64),
        "observed_x": np.array([0, 0.5, 3, 20, 20.5, 40], np.float32),
        "observed_y": np.array([0, 0.2, 0, 0, 0.2, 0], np.float32),
        "assignment": pd.array([0, 0, 0, 1, 1, None], dtype="UInt32"),
        "background": [False, False, True, False, False, True],
    }
    pd.DataFrame(rows).to_parquet(folder / proseg.TRANSCRIPTS)
    ring = [[[-2, -2], [2, -2], [2, 2], [-2, 2], [-2, -2]]]
    small = [[[5, 5], [6, 5], [6, 6], [5, 6], [5, 5]]]
    shapes = [[ring, small], [], [[[[38, -2], [42, -2], [42, 2], [38, -2]]]]]
    features = [{"type": "Feature", "properties": {"cell": i}, "geometry": {"type": "MultiPolygon", "coordinates": s}} for i, s in enumerate(shapes)]
    with gzip.open(folder / proseg.POLYGONS, "wt") as stream:
        json.dump({"type": "FeatureCollection", "features": features}, stream)
    (folder / proseg.VERSION).write_text("proseg 3.2.0\n")
    return folder


def test_proseg_is_read(tmp_path):
    found = proseg.collect(proseg_output(tmp_path / "raw"), prepared(tmp_path / "p"))
    assert dict(zip(found.transcripts.tolist(), found.cells.tolist(), strict=True)) == {0: 1, 1: 1, 8: 2, 9: 2}, "background is no cell's"
    assert found.outlines[1].area == pytest.approx(17)
    assert found.outlines[2].covers(shapely.Point(20.5, 0.2)), "a cell without voxel gets the hull of its transcripts"
    assert 3 in found.outlines
    assert "1 cells of proseg hold transcripts but no voxel" in found.warnings[0]
    assert found.facts["program"] == "proseg 3.2.0"


def test_proseg_that_was_cut_off_is_refused(tmp_path):
    raw = proseg_output(tmp_path / "raw")
    given = prepared(tmp_path / "p")
    whole = (raw / proseg.POLYGONS).read_bytes()
    (raw / proseg.POLYGONS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="are not the cell polygons of Proseg 3"):
        proseg.collect(raw, given)
    (raw / proseg.POLYGONS).unlink()
    with pytest.raises(InputError, match="Did proseg end well"):
        proseg.collect(raw, given)
    (raw / proseg.TRANSCRIPTS).write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not the transcript metadata"):
        proseg.collect(raw, given)


def comseg_output(folder: Path, rows: list[tuple[int, int]]) -> Path:
    folder.mkdir()
    pd.DataFrame(rows, columns=["transcript_id", "prior"]).to_csv(folder / "assignment.csv", index=False)
    (folder / "comseg.json").write_text('{"program": "comseg 1.8.5", "seed": 0}')
    return folder


def test_comseg_is_read(tmp_path):
    given = prepared(tmp_path / "p")
    found = comseg.collect(comseg_output(tmp_path / "raw", [(0, 1), (4, 1), (12, 2)]), given)
    assert found.cells.tolist() == [1, 1, 2]
    assert set(found.outlines) == {1, 2}
    assert found.outlines[1].covers(given.prior.geometry.iloc[0]), "a cell holds its nucleus"
    assert found.outlines[1].covers(shapely.Point(3.0, 0.0))
    assert found.facts == {"program": "comseg 1.8.5", "seed": 0}


def test_comseg_without_any_cell_is_read(tmp_path):
    found = comseg.collect(comseg_output(tmp_path / "raw", []), prepared(tmp_path / "p"))
    assert found.outlines == {}
    assert len(found.transcripts) == 0


@pytest.mark.parametrize(("row", "message"), [((0, 4), "names nuclei"), ((99, 1), "names the transcript 99")])
def test_comseg_of_another_sample_is_refused(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        comseg.collect(comseg_output(tmp_path / "raw", [row]), prepared(tmp_path / "p"))


BAYSOR_CSV = """transcript_id,x,y,z,gene,prior,molecule_id,prior_segmentation,confidence,cell,assignment_confidence,is_noise,cluster,ncv_color
0,0.0,0.0,0.0,Actb,1,1,1,0.99981,CRa1b2c3d4-2,0.98,false,1,#7F8C01
1,0.5,0.25,0.0,Actb,1,2,1,0.99981,CRa1b2c3d4-2,1.0,false,1,#7F8C01
2,1.0,0.5,0.0,Actb,1,3,1,0.97,CRa1b2c3d4-2,1.0,false,2,#7F8C01
4,3.0,0.0,0.0,Actb,0,4,0,0.12,,0.7,true,1,#7F8C01
8,20.0,0.0,0.0,Actb,2,5,2,0.9,CRa1b2c3d4-11,0.9,false,3,#7F8C01
"""
"""Columns of Baysor 0.7.1: those of the input, then its own."""


def baysor_output(folder: Path) -> Path:
    folder.mkdir()
    (folder / baysor.SEGMENTATION).write_text(BAYSOR_CSV)
    ring = [[-0.2, -0.2], [1.2, -0.2], [1.2, 0.7], [-0.2, -0.2]]
    feature = {"type": "Feature", "id": "CRa1b2c3d4-2", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (folder / baysor.POLYGONS).write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return folder


def test_baysor_is_read(tmp_path):
    found = baysor.collect(baysor_output(tmp_path / "raw"), prepared(tmp_path / "p"))
    assert dict(zip(found.transcripts.tolist(), found.cells.tolist(), strict=True)) == {0: 2, 1: 2, 2: 2, 8: 1}, "noise is no cell's"
    assert found.outlines[2].area == pytest.approx(0.63)
    assert found.outlines[1].covers(shapely.Point(20, 0)), "too few molecules for a polygon: the hull"


def test_baysor_071_crosses_the_polygons_of_small_cells_and_draws_empty_ones(tmp_path):
    raw = baysor_output(tmp_path / "raw")
    features = json.loads((raw / baysor.POLYGONS).read_text())["features"]
    # One molecule at (20, 0): right, left, above, below of it.
    crossed = [[20.01, 0.0], [19.99, 0.0], [20.0, 0.01], [20.0, -0.01]]
    empty = [[50.0, 0.0], [51.0, 0.0], [51.0, 1.0], [50.0, 0.0]]
    for name, ring in (("CRa1b2c3d4-11", crossed), ("CRa1b2c3d4-7", empty)):
        features.append({"type": "Feature", "id": name, "geometry": {"type": "Polygon", "coordinates": [ring]}})
    (raw / baysor.POLYGONS).write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    found = baysor.collect(raw, prepared(tmp_path / "p"))
    assert sorted(found.outlines) == [1, 2], "nothing lies in the third polygon"
    assert found.outlines[1].is_valid and found.outlines[1].area > 0.1 and found.outlines[2].area == pytest.approx(0.63)


def test_baysor_with_nothing_but_noise_is_read(tmp_path):
    raw = baysor_output(tmp_path / "raw")
    lines = BAYSOR_CSV.splitlines()
    (raw / baysor.SEGMENTATION).write_text("\n".join([lines[0], lines[4]]) + "\n")
    (raw / baysor.POLYGONS).write_text('{"type": "FeatureCollection", "features": []}')
    assert baysor.collect(raw, prepared(tmp_path / "p")).outlines == {}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (baysor.SEGMENTATION, "x,y\n1,2\n", "is not the segmentation.csv"),
        (baysor.POLYGONS, '{"type": "GeometryCollection", "geometries": []}', "are not the polygons"),
        (baysor.POLYGONS, None, "Did baysor end well"),
    ],
)
def test_baysor_in_another_format_is_refused(tmp_path, file, text, message):
    raw = baysor_output(tmp_path / "raw")
    (raw / file).write_text(text) if text else (raw / file).unlink()
    with pytest.raises(InputError, match=message):
        baysor.collect(raw, prepared(tmp_path / "p"))
