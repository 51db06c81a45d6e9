"""Ten million transcripts of one gene: the table that packs no column and fills no dictionary. `make test-faults` runs it (two minutes)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pytest
import shapely

import raw_fixtures
from istseg.artifacts import cells as cells_file

SIDE_PX, ROWS, LIMIT_GB = 4096, 10_000_000, 2.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not os.environ.get("ISTSEG_TEST_LARGE"), reason="10 million rows: runs by `make test-faults` only"),
]


def peak_gb(*arguments: object) -> float:
    """Run a stage as Nextflow does; its largest resident memory."""
    child = subprocess.Popen([Path(sys.executable).with_name("istseg"), "--quiet", *map(str, arguments)])
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, arguments
    return usage.ru_maxrss * 1024 / 1e9


def test_memory_stays_bounded_and_every_transcript_is_counted(tmp_path):
    raw = tmp_path / "raw"
    matrix = raw_fixtures.merscope(raw, height=SIDE_PX, width=SIDE_PX, planes=1, stains=("DAPI", "PolyT"), n=600)["matrix"]
    low, high = ((at - matrix[:2, 2]) / matrix.diagonal()[:2] for at in (0, SIDE_PX - 1))
    rng = np.random.default_rng(0)
    columns = {
        "global_x": rng.uniform(low[0], high[0], ROWS).round(3), "global_y": rng.uniform(low[1], high[1], ROWS).round(3), "global_z": np.zeros(ROWS),
        "gene": pa.repeat("Actb", ROWS), "cell_id": pa.repeat(-1, ROWS),
    }  # fmt: skip
    pc.write_csv(pa.table(columns), raw / "detected_transcripts.csv")
    corners = np.arange(10, 430, 12.0)
    boxes = [shapely.box(low[0] + x, low[1] + y, low[0] + x + 9, low[1] + y + 9) for y in corners for x in corners]
    inside = sum(int(((columns["global_x"] - low[0] - 10) % 12 <= 9)[rows].sum()) for rows in _in_rows_of_boxes(columns, low, corners))
    cells_file.write(tmp_path / "cells.parquet", cells_file.frame([f"c{i}" for i in range(len(boxes))], boxes))

    converted = tmp_path / "convert"
    facts, store = converted / "sample.json", converted / "s.zarr"
    points = store / "points" / "transcripts" / "points.parquet"
    assert peak_gb("convert", "--raw", raw, "--sample", "s", "--platform", "merscope", "--out", converted) < LIMIT_GB
    assert peak_gb("tile", "--sample-json", facts, "--zarr", store, "--out", tmp_path) < LIMIT_GB
    given = ("--sample-json", facts, "--transcripts", points, "--cells", tmp_path / "cells.parquet", "--segmentation", "truth")
    assert peak_gb("assign", *given, "--out", tmp_path / "assign") < LIMIT_GB
    counts = anndata.read_h5ad(tmp_path / "assign" / "counts.h5ad")
    assert counts.var_names.tolist() == ["Actb"]
    assert abs(int(counts.X.sum()) - inside) <= 20, "of 10 million, some lie on an edge to the last digit"


def _in_rows_of_boxes(columns, low, corners):
    """Transcripts at the height of a row of boxes, and between the first and the last column of boxes."""
    x, y = columns["global_x"] - low[0], columns["global_y"] - low[1]
    between = (x >= corners[0]) & (x <= corners[-1] + 9)
    for top in corners:
        yield between & (y >= top) & (y <= top + 9)
