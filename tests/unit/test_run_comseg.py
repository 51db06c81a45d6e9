"""bin/run_comseg with the real ComSeg: what genes are called does not matter."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT

PYTHON = ROOT / ".istseg" / "comparators" / "comseg" / "bin" / "python"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.access(PYTHON, os.X_OK), reason="comseg is not installed; run `make comparators`")]


def assigned(folder: Path, genes: list[str]) -> pd.DataFrame:
    """What ComSeg gives for sixteen nuclei whose transcripts lie around them; genes go by their place in `genes`."""
    rng = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(np.arange(4) * 12.0, np.arange(4) * 12.0), -1).reshape(-1, 2)
    nucleus = np.repeat(np.arange(16), 40)
    away = rng.normal(0, 2.0, (len(nucleus), 2))
    number = np.where(rng.random(len(nucleus)) < 0.3, rng.integers(0, len(genes), len(nucleus)), nucleus % len(genes))
    folder.mkdir()
    inside = np.hypot(*away.T) < 2
    xy = centres[nucleus] + away
    table = {"transcript_id": np.arange(len(nucleus)), "x": xy[:, 0], "y": xy[:, 1], "z": 0.0, "gene": np.array(genes)[number]}
    pd.DataFrame(table | {"prior": np.where(inside, nucleus + 1, 0)}).to_csv(folder / "transcripts.csv", index=False)
    pd.DataFrame({"prior": np.arange(1, 17), "x": centres[:, 0], "y": centres[:, 1]}).to_csv(folder / "prior.csv", index=False)
    command = [PYTHON, ROOT / "bin" / "run_comseg", "--prepared", folder, "--out", folder / "output"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in folder.iterdir()} == {"transcripts.csv", "prior.csv", "output"}
    return pd.read_csv(folder / "output" / "assignment.csv").assign(gene=lambda t: np.array(genes)[number][t["transcript_id"]])


def test_genes_whose_names_pandas_takes_for_missing_or_numbers_are_genes(tmp_path):
    plain = assigned(tmp_path / "plain", ["A1", "M1", "N1", "n1"])
    odd = assigned(tmp_path / "odd", ["1e5", "NA", "NULL", "nan"])
    assert {"1e5", "NA", "NULL", "nan"} == set(odd["gene"])
    pd.testing.assert_frame_equal(odd.drop(columns="gene"), plain.drop(columns="gene"))
