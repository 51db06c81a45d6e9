"""Maps of cells over squares."""

from __future__ import annotations

import numpy as np

from istseg.qc.maps import SQUARES, over_squares


def test_sums_lie_where_the_cells_lie():
    xy = np.array([[10.0, 10.0], [20.0, 10.0], [60.0, 10.0], [10.0, 99.0], [-1.0, 5.0], [130.0, 5.0]])
    found = over_squares(xy, (100.0, 120.0), {"flagged": np.array([True, False, True, False, True, True]), "transcripts": np.arange(1, 7)})
    assert found["square_um"] == 50.0
    assert found["cells"] == [[2, 1, 0], [1, 0, 0]]
    assert found["flagged"] == [[1, 1, 0], [0, 0, 0]]
    assert found["transcripts"] == [[3, 3, 0], [4, 0, 0]]


def test_a_large_slide_has_no_more_squares():
    found = over_squares(np.array([[9_999.0, 4_999.0]]), (5_000.0, 10_000.0), {})
    assert max(np.shape(found["cells"])) <= SQUARES
    assert found["cells"][-1][-1] == 1
    assert over_squares(np.array([[-3.0, 4.0]]), (100.0, 100.0), {}) == {}
