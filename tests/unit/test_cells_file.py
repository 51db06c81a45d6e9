"""The common form of cells: what is not usable is refused when it is read, by the name of the cell."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

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
