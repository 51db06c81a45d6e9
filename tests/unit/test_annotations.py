"""Annotated cells from every kind of file, in the frame that is said; nothing is dropped in silence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
import tifffile

from istseg.artifacts import annotations
from istseg.artifacts import cells as cells_file
from istseg.artifacts.annotations import Frame
from istseg.errors import InputError

# 0.5 µm per pixel, origin of the pixels at (100, 200) µm; working pixels of 1 µm.
FRAME = Frame(np.array([[2.0, 0, -200], [0, 2.0, -400], [0, 0, 1]]), 120, 160, 0.5, 1.0)


def square(x, y, side, closed=True):
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]
    return [ring + ring[:1] if closed else ring]


def feature(coordinates, kind="Polygon", **more):
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": {}, **more}


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def bounds(found):
    return shapely.bounds(found.polygons).tolist()


CELLS = [feature(square(20, 40, 10)), feature([square(60, 60, 10), square(80, 60, 4)], "MultiPolygon")]
IS_REGION = {"classification": {"name": "Region*"}}
WANTED = [[110, 220, 115, 225], [130, 230, 142, 235]]


@pytest.mark.parametrize(
    "value",
    [
        {"type": "FeatureCollection", "features": CELLS},
        CELLS,
        {"type": "GeometryCollection", "geometries": [c["geometry"] for c in CELLS]},
        [feature(square(20, 40, 10, closed=False)), CELLS[1]],
    ],
    ids=["collection", "list", "geometries", "open ring"],
)
def test_geojson_is_in_pixels_unless_said(tmp_path, value):
    path = write(tmp_path / "any name", value)
    found = annotations.read(path, None, FRAME)
    assert bounds(found) == WANTED and found.region is None and found.ids == ["1", "2"]
    assert shapely.area(found.polygons).tolist() == [25, 29]
    assert bounds(annotations.read(path, "px", FRAME)) == WANTED


def test_geojson_in_microns(tmp_path):
    path = write(tmp_path / "a.geojson", [feature(square(110, 220, 5), id="x"), feature(square(120, 240, 5), id="y")])
    found = annotations.read(path, "um", FRAME)
    assert bounds(found) == [[110, 220, 115, 225], [120, 240, 125, 245]] and found.ids == ["x", "y"]


@pytest.mark.parametrize("classification", [{"name": "Region", "color": [1, 2, 3]}, {"name": "Region*"}, "region"])
def test_a_region_is_no_cell(tmp_path, classification):
    region = feature(square(0, 0, 50), properties={"classification": classification})
    outside = feature(square(100, 100, 10), properties={"classification": {"name": "Tumor"}})
    found = annotations.read(write(tmp_path / "a", [region, CELLS[0], outside]), None, FRAME)
    assert len(found.polygons) == 2 and found.region.bounds == (100, 200, 125, 225)
    assert not found.warnings, "cells outside the region are no fault: they count for best matches"


def test_a_region_without_annotated_cells_is_told(tmp_path):
    # Cells of 10 px at (20, 40): the region reaches into the cell, but not to its centroid.
    reaching = feature(square(0, 20, 23), properties=IS_REGION)
    found = annotations.read(write(tmp_path / "a", [reaching, CELLS[0]]), None, FRAME)
    assert len(found.warnings) == 1 and "no annotated cell lies in the region" in found.warnings[0]
    whole = feature(square(0, 20, 40), properties=IS_REGION)
    assert not annotations.read(write(tmp_path / "b", [whole, CELLS[0]]), None, FRAME).warnings


@pytest.mark.parametrize("properties", [None, {}, []])
def test_a_feature_need_not_have_properties(tmp_path, properties):
    found = annotations.read(write(tmp_path / "a", [feature(square(20, 40, 10), properties=properties)]), None, FRAME)
    assert found.ids == ["1"] and found.region is None


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32"])
def test_label_tiff_of_the_mosaic_or_the_working_grid(tmp_path, scale, dtype):
    labels = np.zeros((120 // scale, 160 // scale), dtype)
    labels[20 // scale : 40 // scale, 10 // scale : 30 // scale] = 200
    labels[60 // scale : 80 // scale, 100 // scale : 140 // scale] = 7
    tifffile.imwrite(tmp_path / "a", labels, compression="zlib", rowsperstrip=16)
    found = annotations.read(tmp_path / "a", None, FRAME)
    assert found.ids == ["7", "200"] and not found.warnings
    # Outlines run through the middles of pixels at corners, so areas lack an eighth of a pixel at each.
    assert np.allclose(bounds(found), [[150, 230, 170, 240], [105, 210, 115, 220]])
    assert np.allclose(shapely.area(found.polygons), [200, 100], atol=scale**2 * 0.25)


def test_labels_over_bands_and_without_background(tmp_path, monkeypatch):
    labels = np.repeat(np.array([[3], [1]], np.uint16), 60, axis=0) * np.ones((1, 160), np.uint16)
    tifffile.imwrite(tmp_path / "a", labels)
    monkeypatch.setattr(annotations, "_BAND", 32)
    found = annotations.read(tmp_path / "a", None, FRAME)
    assert found.ids == ["1", "3"] and np.allclose(bounds(found), [[100, 230, 180, 260], [100, 200, 180, 230]])


def test_a_label_of_several_parts_is_told(tmp_path):
    labels = np.zeros((120, 160), np.uint16)
    labels[10:30, 10:30], labels[60:80, 60:70] = 4, 4
    tifffile.imwrite(tmp_path / "a", labels)
    assert annotations.read(tmp_path / "a", None, FRAME).warnings == [
        "Annotations: labels 4 have several parts or holes: their largest part is taken, holes are filled."
    ]


def test_a_table_of_cells_is_in_microns(tmp_path):
    cells_file.write(tmp_path / "a", cells_file.frame(["c1"], np.array([shapely.box(110, 220, 120, 230)])))
    found = annotations.read(tmp_path / "a", None, FRAME)
    assert found.ids == ["c1"] and bounds(found) == [[110, 220, 120, 230]]
    with pytest.raises(InputError, match="in µm; leave it empty"):
        annotations.read(tmp_path / "a", "px", FRAME)


def test_broken_and_repeated_outlines_are_told(tmp_path):
    bow_tie = [[[10, 10], [30, 30], [30, 10], [10, 30], [10, 10]]]
    path = write(tmp_path / "a", [feature(bow_tie), CELLS[0], CELLS[0], feature(square(150, 20, 20)), feature(square(20, 60, 20))])
    found = annotations.read(path, None, FRAME)
    assert found.ids == ["1", "2", "4", "5"]
    assert found.polygons[0].area == pytest.approx(50) and shapely.is_valid(found.polygons).all()
    assert [w.split(":")[1].split(" and ")[0].strip() for w in found.warnings] == [
        "the outlines of features 1 cross themselves",
        "cells 4 reach beyond the image.",
        "cells 3 are there twice with the same outline",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "message"),
    [
        ([feature([5, 5], "Point"), CELLS[0], feature([[1, 1], [2, 2]], "LineString")], None, "features 1: Point is no polygon(.|\n)*features 3: LineString"),
        ([feature([[[1, 1], [2, 2], [1, 1]]])], None, "fewer than three corners"),
        ([feature([[[1, 1], [2, "a"], [1, 4]]])], None, "no list of points"),
        ([feature([])], None, "the outline is empty"),
        ([{"type": "Feature", "geometry": None}], None, "no geometry is no polygon"),
        ([feature([[[1, 1], [5, 5], [9, 9], [1, 1]]])], None, "cells 1 have no area"),
        ([], None, "holds no annotated cell"),
        ({"a": 1}, None, "neither a FeatureCollection nor a list"),
        ({"type": "FeatureCollection"}, None, "without a list of features"),
        ([feature(square(500, 40, 10))], None, "1 of 1 cells lie outside the image of 160 x 120 px"),
        ([feature(square(40, 140, 10)), feature(square(20, 130, 10))], None, "With x and y exchanged they lie inside"),
        ([feature(square(170, 250, 5))], None, "set annotations_unit to um"),
        ([feature(square(20, 40, 10))], "um", "set annotations_unit to px"),
        (CELLS, "mm", "should be px or um"),
        ([CELLS[0], feature(square(20, 40, 10), properties=["region"])], None, "features 2: `properties` is no object"),
        ([CELLS[0], feature(square(20, 40, 10), properties="region")], None, "features 2: `properties` is no object"),
        ([CELLS[0], feature([[[1, 1], [5, 5], [9, 9], [1, 1]]], properties=IS_REGION)], None, "the region has no area"),
        ([CELLS[0], feature(square(500, 40, 10), properties=IS_REGION)], None, "the region lies outside the image of 160 x 120 px"),
        ([CELLS[0], feature(square(160, 40, 10), properties=IS_REGION)], None, "the region lies outside"),
    ],
)
def test_what_is_refused(tmp_path, value, unit, message):
    with pytest.raises(InputError, match=message):
        annotations.read(write(tmp_path / "a", value), unit, FRAME)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid GeoJSON"),
        (b"id,x,y\n", "neither GeoJSON nor TIFF"),
        (b"II*\0nothing", "cut off or damaged"),
        (b"PAR1x", "cannot be read as GeoParquet"),
    ],
)
def test_files_of_other_kinds(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=message):
        annotations.read(tmp_path / "a", None, FRAME)
    with pytest.raises(InputError, match="cannot be read"):
        annotations.read(tmp_path / "none", None, FRAME)


def test_a_label_image_of_another_size(tmp_path):
    tifffile.imwrite(tmp_path / "a", np.ones((50, 50), np.uint8))
    with pytest.raises(InputError, match="50 x 50 pixels, neither 120 x 160 nor 60 x 80"):
        annotations.read(tmp_path / "a", None, FRAME)
    with pytest.raises(InputError, match="a label image lies in pixels"):
        annotations.read(tmp_path / "a", "um", FRAME)


def test_an_unlikely_size_is_told(tmp_path):
    found = annotations.read(write(tmp_path / "a", [feature(square(20, 40, 2))]), None, FRAME)
    assert found.warnings == ["Annotations: the median area of the cells is 1 µm²: is annotations_unit (px) right?"]


def test_a_region_that_does_not_say_so_is_told(tmp_path):
    frame = Frame(np.diag([0.5, 0.5, 1]), 120, 160, 2.0, 2.0)
    found = annotations.read(write(tmp_path / "a", [feature(square(0, 0, 60), id="roi"), feature(square(5, 5, 5)), feature(square(20, 5, 5))]), None, frame)
    assert found.warnings == ["Annotations: 1 are larger than 5000 µm² and count as cells; a region needs the classification `region`."]


def test_what_is_written_is_read_again(tmp_path):
    cells = [("a", shapely.box(10, 10, 30, 30)), ("b", shapely.box(50, 50, 60.126, 60))]
    annotations.write_geojson(tmp_path / "a", cells, shapely.box(0, 0, 100, 100))
    found = annotations.read(tmp_path / "a", None, FRAME)
    assert found.ids == ["a", "b"] and found.region.area == 2500 and bounds(found)[1] == [125, 225, 130.065, 230]
