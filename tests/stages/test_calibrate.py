"""calibrate: pooled thresholds, the best layer, warnings and refusals."""

import numpy as np
import pytest

from istseg.artifacts.files import write_json
from istseg.artifacts.thresholds import Thresholds
from istseg.curation import density
from istseg.errors import InputError
from istseg.stages import calibrate


def _sketch(tile="y000x000", densities=(), counts=(), cells=None, **changes):
    values, how_often = np.unique(np.asarray(counts, int), return_counts=True)
    return {
        "sample": "s", "tile_id": tile, "stains": ["DAPI", "A", "B"], "density_sigma_um": 1.08,
        "density": density.sparse(density.density_histogram(np.asarray(densities, float))),
        "transcripts_per_nucleus": {"values": values.tolist(), "counts": how_often.tolist()},
        "n_nuclei": len(counts), "cells": cells or {}, **changes,
    }  # fmt: skip


def _write(folder, *sketches):
    for i, sketch in enumerate(sketches):
        write_json(folder / str(i) / "sketch.json", sketch)
    return [folder]


def _run(folder, *sketches, background=5.0, spurious=5.0):
    calibrate.run(labels=_write(folder / "in", *sketches), out=folder, background_percentile=background, spurious_percentile=spurious)
    return Thresholds.read(folder / "thresholds.json")


def test_thresholds_are_percentiles_of_all_tiles_together(tmp_path):
    random = np.random.default_rng(0)
    densities, counts = random.gamma(3, 0.4, 9000), random.poisson(20, 300)
    found = _run(tmp_path, _sketch("a", densities[:2000], counts[:50]), _sketch("b", densities[2000:], counts[50:]))
    assert found.background_density == pytest.approx(np.percentile(densities, 5), rel=0.01)
    assert found.spurious_count == pytest.approx(np.percentile(counts, 5))
    assert (found.n_nuclei, found.n_nucleus_pixels, found.warnings) == (300, 9000, [])
    assert sum(found.density_histogram["counts"]) == 9000
    assert len(found.density_histogram["edges"]) == len(found.density_histogram["counts"]) + 1
    assert np.all(np.diff(found.density_histogram["edges"]) > 0)
    assert sum(found.count_histogram["counts"]) == 300
    other = _run(tmp_path / "other", _sketch("a", densities, counts), background=20.0, spurious=50.0)
    assert other.background_density == pytest.approx(np.percentile(densities, 20), rel=0.01)
    assert other.percentiles == {"background": 20.0, "spurious": 50.0}


def test_the_best_stain_has_the_most_consistent_cells(tmp_path):
    tiles = [
        _sketch(t, [1.0], [5], {"cells_A": {"cells": 40, "consistent": a}, "cells_B": {"cells": 30, "consistent": b}})
        for t, a, b in (("x", 10, 12), ("y", 9, 8))
    ]
    found = _run(tmp_path, *tiles)
    assert (found.best_stain, found.best_layer) == ("B", "cells_B")
    assert found.teacher_cells == {"A": {"cells": 80, "consistent": 19}, "B": {"cells": 60, "consistent": 20}}


@pytest.mark.parametrize("layer", ["cells_expansion", "cells_vendor"])
def test_layers_that_are_no_stain_are_the_best_layer_but_no_stain(tmp_path, layer):
    found = _run(tmp_path, _sketch(densities=[1.0], counts=[5], cells={layer: {"cells": 3, "consistent": 1}}))
    assert (found.best_stain, found.best_layer) == (None, layer)


def test_few_nuclei_and_a_zero_background_are_said(tmp_path):
    densities = np.r_[np.zeros(10), np.ones(90)]
    found = _run(tmp_path, _sketch(densities=densities, counts=[3] * 49))
    assert found.background_density == 0
    assert "49 nuclei" in found.warnings[0] and "density is 0" in found.warnings[1] and len(found.warnings) == 2
    none = _run(tmp_path / "none", _sketch())
    assert (none.n_nuclei, none.background_density, none.spurious_count, none.best_layer) == (0, 0.0, 0.0, None)
    assert len(none.warnings) == 1
    assert _run(tmp_path / "enough", _sketch(densities=np.ones(100), counts=[3] * 50)).warnings == []


def test_zero_spurious_count_is_said(tmp_path):
    found = _run(tmp_path, _sketch(densities=np.ones(100), counts=[0] * 5 + [9] * 60))
    assert found.spurious_count == 0
    assert len(found.warnings) == 1 and "no cell can be spurious" in found.warnings[0]


def test_the_order_of_tiles_does_not_matter(tmp_path):
    random = np.random.default_rng(2)
    sketches = [_sketch(f"t{i}", random.gamma(2, 1, 100), random.poisson(5, 20)) for i in range(5)]
    _run(tmp_path / "a", *sketches)
    _run(tmp_path / "b", *sketches[::-1])
    assert (tmp_path / "a/thresholds.json").read_bytes() == (tmp_path / "b/thresholds.json").read_bytes()


def test_what_cannot_be_pooled_is_refused_all_at_once(tmp_path):
    paths = _write(tmp_path, _sketch("a"), _sketch("a"), _sketch("b", sample="other"), _sketch("c", density_sigma_um=2.0), {"sample": "s"})
    with pytest.raises(InputError) as error:
        calibrate.read_sketches(paths)
    text = str(error.value)
    assert len(error.value.problems) == 4
    assert "there twice" in text and "several samples (other, s)" in text and "several kernels" in text and "not a sketch.json of this version" in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no sketch\.json"):
        calibrate.read_sketches([tmp_path / "empty"])


def test_single_files_are_taken_too(tmp_path):
    _write(tmp_path, _sketch("a", [1.0], [2]), _sketch("b", [1.0], [3]))
    assert len(calibrate.read_sketches([tmp_path / "0" / "sketch.json", tmp_path / "1" / "sketch.json"])) == 2
