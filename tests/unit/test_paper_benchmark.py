"""benchmarks/paper: the road that its figures share, on a tiny sample; the warm start of the ablations; the scripts of foreign programs."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "benchmarks" / "paper"


@pytest.fixture
def modules(monkeypatch):
    """Imports a module of benchmarks/paper."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(PAPER))
    return importlib.import_module


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_methods_are_judged_on_clean_and_broken_contours(tmp_path):
    command = [sys.executable, PAPER / "run.py", "--figures", "4b", "--contours", "0.8", "--size-um", "60", "--out", tmp_path]
    done = subprocess.run([*map(str, command), "--methods", "istseg,teacher,proseg,unheard of"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "fig4b.csv")
    assert [(row["method"], row["contour gone"]) for row in rows] == [("istseg", "0.000"), ("teacher", "0.000"), ("istseg", "0.800"), ("teacher", "0.800")]
    clean, _, broken, _ = rows
    assert float(clean["own_pixel_iou"]) == 1 and 0.5 < float(broken["own_pixel_iou"]) < 0.999
    assert 0.6 < float(clean["pixel_iou"]) < 1 and 0.6 < float(clean["rna_iou"]) < 1
    assert (tmp_path / "fig4b.png").stat().st_size > 5000 and (tmp_path / "fig4b.md").read_text() in done.stdout + "\n"
    assert "not run: unheard of: not in this version" in done.stdout


def test_scripts_of_the_modules_are_filled_in(modules):
    road = modules("road")
    for name in ("proseg", "comseg", "baysor"):
        script = road.module_script(name, f"bin/{name}", "--an-argument 3")
        assert name in script and "--an-argument 3" in script and "input/prepared" in script and "${" not in script


def test_touching_cells_get_sets_without_a_common_gene(modules):
    profiles = modules("profiles")
    # A row of squares, 0.2 µm apart, and one far away.
    squares = shapely.box(np.array([0.0, 4.2, 8.4, 12.6, 40.0]), 0, np.array([4.0, 8.2, 12.4, 16.6, 44.0]), 4)
    pairs = profiles.neighbours(squares)
    assert sorted(zip(*pairs.tolist(), strict=True)) == [(0, 1), (1, 2), (2, 3)]
    for seed in range(30):
        chosen = profiles.sets_of_cells(len(squares), pairs, np.random.default_rng(seed))
        assert (chosen[pairs[0]] != chosen[pairs[1]]).all() and chosen.min() >= 0 and chosen.max() < profiles.SETS
        assert np.array_equal(chosen, profiles.sets_of_cells(len(squares), pairs, np.random.default_rng(seed)))


def test_tables_have_the_columns_of_all_rows(modules, tmp_path):
    tables = modules("tables")
    text = tables.write(tmp_path, "t", [{"method": "a", "iou": 0.12345}, {"method": "b", "note": "not run"}])
    assert text.splitlines() == ["| method | iou | note |", "| --- | --- | --- |", "| a | 0.123 |  |", "| b |  | not run |"]
    assert rows_of(tmp_path / "t.csv") == [{"method": "a", "iou": "0.123", "note": ""}, {"method": "b", "iou": "", "note": "not run"}]


def test_seeds_give_a_mean_and_half_of_the_range(modules, tmp_path):
    tables = modules("tables")
    row = {"method": "a"} | tables.spread([{"iou": 0.5, "pq": None}, {"iou": 0.7, "pq": 0.25}, {"iou": 0.9, "pq": 0.75}])
    assert tables.write(tmp_path, "t", [row]).splitlines()[2] == "| a | 0.700 ± 0.200 | 0.500 ± 0.250 |"
    assert rows_of(tmp_path / "t.csv") == [{"method": "a", "iou": "0.700", "iou ±": "0.200", "pq": "0.500", "pq ±": "0.250"}]
    assert tables.spread([{"iou": 0.5, "pq": None}]) == {"iou": 0.5, "pq": None}


def test_rna_iou_of_label_images(modules):
    ablations = modules("ablations")

    class Sample:
        truth = np.array([[1, 1, 1, 2, 2, 0]])
        places = np.array([0, 1, 1, 3, 4, 5])

        def cells_of_transcripts(self, labels):
            return labels.ravel()[self.places]

    # Cell 1 loses two of its three transcripts to cell 9, which holds both of cell 2 and one of none.
    found = ablations.scores(Sample(), np.array([[5, 9, 5, 9, 9, 9]]))
    assert found["RNA IoU"] == pytest.approx((1 / 3 + 2 / 5) / 2)
    assert found["pixel IoU"] == pytest.approx((2 / 3 + 2 / 4) / 2)


def test_pictures_for_cellpose_hold_what_each_network_sees(modules):
    cellpose_weights = modules("cellpose_weights")
    (nuclei,), (cyto,) = (cellpose_weights.pictures(role, 1, 128, seed=3, held_out=True) for role in ("nuclei", "cyto"))
    assert nuclei.stains.shape == cyto.stains.shape == (2, 128, 128) and nuclei.labels.shape == (128, 128)
    assert not nuclei.stains[1].any() and cyto.stains[0].any() and cyto.stains[1].any()
    assert len(np.unique(nuclei.labels)) > 3 < len(np.unique(cyto.labels))
    inside = nuclei.labels > 0
    assert nuclei.stains[0][inside].mean() > nuclei.stains[0][~inside].mean() + 0.2
    assert inside.sum() < (cyto.labels > 0).sum()


def test_a_cellpose_network_starts_with_the_layers_of_the_base(modules):
    cellpose_weights, finetuning = modules("cellpose_weights"), modules("finetuning")
    model, shared = cellpose_weights.started(finetuning.BASE, seed=1)
    assert shared == 301 and len(model.net.state_dict()) == 313
