"""The count matrix and the AnnData file."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from istseg import counts


@pytest.mark.parametrize(("pending", "cells", "block"), [(10, 2, 3), (10, 7, 1), (1_000_000, 2_000, 8_192), (30, 100, 4)])
def test_counts_are_a_histogram(monkeypatch, pending, cells, block):
    monkeypatch.setattr(counts, "_PENDING", pending)
    monkeypatch.setattr(counts, "_CELLS_AT_ONCE", cells)
    monkeypatch.setattr(counts._SumReader, "_BLOCK", block)
    rng = np.random.default_rng(0)
    matrix, expected = counts.CountMatrix(7, 5), np.zeros((7, 5))
    for _ in range(20):
        cell, target = rng.integers(0, 6, 9), rng.integers(0, 5, 9)
        matrix.add(cell, target)
        np.add.at(expected, (cell, target), 1)
    found = matrix.csr()
    assert (found.toarray() == expected).all()
    assert found.has_sorted_indices and (found.data > 0).all() and found.dtype == np.float32


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 2)])
def test_nothing_counted(shape):
    assert counts.CountMatrix(*shape).csr().shape == shape


def adata(n=3, controls=("Blank-1",)):
    cells = pd.DataFrame({"cell_id": [f"c/{i}é" for i in range(n)], "area_um2": 1.5, "centroid_x_um": 1.0, "centroid_y_um": 2.0})
    matrix = [sparse.csr_matrix(np.arange(n * k).reshape(n, k).astype(np.float32)) for k in (2, len(controls))]
    facts = {"none": None, "mixed": [1, "a"], "nested": {"a/b": (1, 2)}}
    return counts.build("s", "istseg", cells, (["HLA-A/B", "β"], list(controls)), matrix, facts)


@pytest.mark.parametrize("controls", [(), ("Blank-1",)])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_file_holds_only_what_every_reader_knows(tmp_path, n, controls):
    """Encodings that anndata has written since 0.8 and that zellkonverter, anndataR and Seurat read; no nullable and no pickled columns."""
    import anndata

    counts.write(tmp_path / "c.h5ad", adata(n, controls))
    known = {"anndata", "dict", "dataframe", "csr_matrix", "array", "string-array", "string", "numeric-scalar", "categorical"}
    with h5py.File(tmp_path / "c.h5ad") as stored:
        found = {}
        stored.visititems(lambda name, item: found.update({name: item.attrs.get("encoding-type", "")}))
        kinds = {name: stored[name].dtype for name in found if isinstance(stored[name], h5py.Dataset)}
    assert {e for e in found.values() if e} <= known
    assert all(k.kind in "iufb" or h5py.check_string_dtype(k) or h5py.check_enum_dtype(k) for k in kinds.values())
    back = anndata.read_h5ad(tmp_path / "c.h5ad")
    assert list(back.var_names) == ["HLA-A/B", "β"] and list(back.obs_names) == [f"c/{i}é" for i in range(n)]
    assert back.obsm["controls"].shape == (n, len(controls)) and back.uns["istseg"]["controls"] == json.dumps(list(controls))
    assert list(back.obs.columns) == counts.OBS_COLUMNS


def test_h5ad_safe():
    safe = counts.h5ad_safe({"none": None, "mixed": [1, "a"], "flags": [True], "nested": {"a/b": (1, 2)}, "text": ["é"], "ok": True})
    assert safe == {"mixed": '[1, "a"]', "flags": "[true]", "nested": {"a|b": [1, 2]}, "text": '["é"]', "ok": True}
