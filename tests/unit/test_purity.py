"""Purity of cells on cases that are counted by hand; lists of genes that people give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from istseg.artifacts import markers
from istseg.errors import InputError
from istseg.qc import purity


def csr(rows):
    return sparse.csr_matrix(np.array(rows, np.float32))


def test_control_probes_against_genes():
    totals = {"in_cells": 590, "in_cells_outside_image": 10, "total": 1000, "controls": 50, "controls_in_cells": 10}
    found = purity.controls(totals, n_genes=300, n_controls=20)
    assert found["control_enrichment"] == pytest.approx((10 / 50) / (600 / 1000))
    assert found["control_share"] == pytest.approx(10 / 610)
    assert found["false_discovery_rate"] == pytest.approx((10 / 20) / (600 / 300))
    none = purity.controls({**totals, "controls": 0, "controls_in_cells": 0}, n_genes=300, n_controls=0)
    assert set(none.values()) == {None}


def test_exclusive_pairs_are_found_from_nuclei():
    # 40 nuclei of two kinds: gene 0 and 1 in the first 20, gene 2 in the others and one of the first, gene 3 in all, gene 4 in two only.
    nuclei = np.zeros((45, 5))
    nuclei[:20, :2] = 1
    nuclei[20:40, 2] = 3
    nuclei[0, 2] = 1
    nuclei[:40, 3] = 1
    nuclei[:2, 4] = 9
    # By chance 0 and 2 would share 20 · 21 / 40 = 10.5 nuclei; they share one, as 1 and 2 do. Five nuclei without transcripts do not count.
    assert purity.exclusive_pairs(csr(nuclei)).tolist() == [[0, 2], [1, 2]]
    assert purity.exclusive_pairs(csr(np.zeros((0, 5)))).shape == (0, 2)


def test_the_best_pairs_are_kept(monkeypatch):
    nuclei = np.zeros((60, 4))
    nuclei[:30, 0], nuclei[30:, 1], nuclei[30:45, 2], nuclei[28:45, 3] = 1, 1, 1, 1
    monkeypatch.setattr(purity, "MAX_PAIRS", 1)
    assert purity.exclusive_pairs(csr(nuclei)).tolist() == [[0, 1]], "30 · 30 / 60 by chance and none found"
    monkeypatch.setattr(purity, "MAX_GENES", 2)
    assert purity.exclusive_pairs(csr(nuclei[:, [2, 0, 1]])).tolist() == [[1, 2]], "the genes in most nuclei"


def test_exclusive_genes_together_in_a_cell():
    counts = csr([[1, 0, 5], [2, 1, 0], [0, 4, 0], [0, 0, 0], [0, 1, 1]])
    found = purity.exclusive(counts, np.array([[0, 1], [2, 1]]))
    # 0 and 1: in one of four cells; 2 and 1: in one of four cells.
    assert found == {"mecr": pytest.approx((1 / 4 + 1 / 4) / 2), "n_pairs": 2}
    assert purity.exclusive(counts, np.zeros((0, 2), int)) == {"mecr": None, "n_pairs": 0}
    assert purity.exclusive(csr(np.zeros((0, 3))), np.array([[0, 1]])) == {"mecr": None, "n_pairs": 0}


def test_contamination_is_what_lies_beside_the_other_kind():
    # Two neighbours of different kinds, foreign 3 of 20 and 1 of 10; far away two of one kind, foreign 1 of 20; one of no kind.
    counts = csr([[17, 3], [1, 9], [10, 0], [9, 1], [4, 4]])
    xy = np.array([[0, 0], [10, 0], [500, 0], [510, 0], [900, 0]], float)
    found = purity.contamination(counts, np.array([[0, 1]]), xy)
    assert found["foreign_beside"] == pytest.approx(4 / 30) and found["foreign_apart"] == pytest.approx(1 / 20)
    assert found["contamination"] == pytest.approx(4 / 30 - 1 / 20)
    apart = purity.contamination(counts, np.array([[0, 1]]), xy * 3)
    assert apart["contamination"] is None and apart["foreign_apart"] == pytest.approx(5 / 50)
    assert purity.contamination(counts[:1], np.array([[0, 1]]), xy[:1])["contamination"] is None


def test_marker_purity():
    genes = ["a", "b", "c", "d"]
    # Types x (a, b) and y (d): 8 of 10; 6 of 6; too few.
    counts = csr([[5, 3, 100, 2], [0, 0, 7, 6], [1, 1, 0, 2]])
    found = purity.markers(counts, genes, pd.DataFrame({"gene": ["a", "b", "d"], "cell_type": ["x", "x", "y"]}))
    assert found == {"marker_purity": pytest.approx(14 / 16), "marker_cells": 2}


def test_lists_of_genes(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("\ufeffgene_b, gene_a\nB, A\nC,B\n", encoding="utf-8")
    warnings = []
    assert markers.known_pairs(path, ["A", "B", "C"], warnings).tolist() == [[0, 1], [1, 2]]
    assert markers.read_pairs(path).to_numpy().tolist() == [["A", "B"], ["B", "C"]]
    path.write_text("gene,cell_type\nA,neuron\nB,glia\n")
    assert markers.known_markers(path, ["A", "B"], warnings)["cell_type"].tolist() == ["neuron", "glia"]
    assert not warnings


def test_genes_that_the_sample_lacks_are_left_out(tmp_path):
    pairs, types, warnings = tmp_path / "pairs.csv", tmp_path / "types.csv", []
    pairs.write_text("gene_a,gene_b\nQ,A\nA,B\nR,Q\nC,A\n")
    types.write_text("gene,cell_type\nA,x\n" + "".join(f"Q{i},y\n" for i in range(7)) + "C,z\n")
    assert markers.known_pairs(pairs, ["A", "B", "C"], warnings).tolist() == [[0, 1], [2, 0]]
    assert markers.known_markers(types, ["A", "B", "C"], warnings).to_numpy().tolist() == [["A", "x"], ["C", "z"]]
    assert warnings == [
        "pairs.csv: 2 of 4 pairs are left out, as the sample lacks 2 of their genes (Q, R).",
        "types.csv: 7 of 9 markers are left out, as the sample lacks 7 of their genes (Q0, Q1, Q2, Q3, Q4 ...).",
    ]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        ("known_pairs", "gene_a,gene_b\nA,X\nY,B\n", "none of its 2 pairs can be used: the sample does not have X, Y"),
        ("read_pairs", "gene_a,gene\nA,B\n", "lacks the columns gene_b; it has gene_a, gene"),
        ("read_pairs", "gene_a,gene_b\nA,B\nB,B\n", "line 3 pairs B with itself"),
        ("read_pairs", "gene_a,gene_b\nA,\n", "line 2 has an empty value"),
        ("read_pairs", "gene_a,gene_b\n", "has a header but no gene"),
        ("read_pairs", "", "cannot be read as CSV"),
        ("read_markers", "gene,cell_type\nA,x\nA,y\n", "names A more than once"),
        ("known_markers", "gene,cell_type\nQ,x\n", "none of its 1 markers can be used: the sample does not have Q"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, read, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        getattr(markers, read)(tmp_path / "list.csv", *((["A", "B"], []) if read.startswith("known") else ()))
