"""The common form of cells: what is not usable is refused when it is read, by the name of the cell."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal

from istseg.artifacts import cells as cells_file
from istseg.errors import InputError


@pytest.mark.parametrize("geometry", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_centroids_are_finite(tmp_path, value, geometry):
    cells = cells_file.frame(["a", "b"], np.array([shapely.box(0, 0, 5, 5), shapely.box(9, 0, 14, 5)], object))
    cells_file.write(tmp_path / "x", cells)
    assert cells_file.read(tmp_path / "x", geometry)["cell_id"].tolist() == ["a", "b"]
    cells.loc[1, "centroid_y_um"] = value
    cells_file.write(tmp_path / "x", cells)
    with pytest.raises(InputError, match="1 of 2 cells have no finite centroid, e.g. 'b'"):
        cells_file.read(tmp_path / "x", geometry)


def test_cells_are_read_as_geopandas_reads_them(tmp_path, monkeypatch):
    """Block by block, with several parts, several polygons in one cell, and boxes."""
    monkeypatch.setattr(cells_file, "_ROWS", 3)
    path = tmp_path / "a.parquet"
    squares = [shapely.box(i, i, i + 1, i + 2) for i in range(9)] + [shapely.MultiPolygon([shapely.box(20, 20, 21, 21), shapely.box(23, 20, 24, 21)])]
    parts = [cells_file.frame([f"c{i}" for i in at], np.array(squares, object)[at], np.array(at) + 1) for at in (range(4), range(4, 10))]
    cells_file.write_parts(path, parts)
    assert_geodataframe_equal(cells_file.read(path), gpd.read_parquet(path))
    box = (2.0, 2.0, 5.0, 5.0)
    assert cells_file.read(path, within=[box, (20, 20, 30, 30)])["cell_id"].tolist() == ["c2", "c3", "c4", "c9"]
    cells_file.write(path, parts[0].iloc[:0])
    assert_geodataframe_equal(cells_file.read(path), gpd.read_parquet(path))


def test_a_table_without_polygons_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"cell_id": ["a"]}).to_parquet(path)
    with pytest.raises(InputError, match="cannot be read as GeoParquet"):
        cells_file.read(path)
