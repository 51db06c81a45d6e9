"""How much work a sample is, before it is done."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from istseg.artifacts.sample import Sample
from istseg.raw import open_raw
from istseg.raw.base import Options
from istseg.stages import convert, simulate, tile
from istseg.workload import transcripts, workload


def test_rows_of_tables(tmp_path):
    lines = "gene,x,y\n" + "Malat1,1234.5,77.25\n" * 200_000
    (tmp_path / "a.csv").write_text(lines)
    assert transcripts(tmp_path / "a.csv") == pytest.approx(200_000, rel=0.01)
    (tmp_path / "b.csv").write_text(lines[:4009])
    assert transcripts(tmp_path / "b.csv") == 201
    with gzip.open(tmp_path / "c.csv.gz", "wt") as stream:
        stream.write(lines)
    assert transcripts(tmp_path / "c.csv.gz") > 0
    pq.write_table(pa.table({"x": range(77)}), tmp_path / "d.parquet")
    assert transcripts(tmp_path / "d.parquet") == 77


def test_measures_are_those_of_the_sample_and_its_tiles(tmp_path):
    """Against what convert and tile then find."""
    simulate.run(
        out=tmp_path, platform="merscope", width_um=160, height_um=140, planes=1, stains="Cellbound1;PolyT", degraded_fraction=0.0, degraded_contour=0.5,
        transcripts_per_um2=0.5, empty_fraction=0.0, generation="", seed=3, autofluorescence=0.0,
    )  # fmt: skip
    size = workload(facts(tmp_path / "raw"), working_um=0.253, tile_um=90.0, overlap_um=32.384)
    convert.run(raw=tmp_path / "raw", sample="s", platform="merscope", out=tmp_path)
    sample = Sample.read(tmp_path / "sample.json")
    tile.run(sample_json=tmp_path / "sample.json", zarr=tmp_path / "s.zarr", out=tmp_path, working_um=0.253, tile_um=90.0, overlap_um=32.384, min_transcripts=1)
    boxes = [json.loads(path.read_text())["region"] for path in (tmp_path / "tiles").glob("*/tile.json")]
    stains = sum(stain.role != "other" for stain in sample.stains)
    assert size["mpx"] == pytest.approx(sample.height_px * sample.width_px / 1e6)
    assert size["stain_mpx"] == pytest.approx(size["mpx"] * stains)
    assert size["row_kpx"] == pytest.approx(sample.width_px * len(sample.stains) / 1e3)
    assert size["mtx"] * 1e6 == pytest.approx(sample.transcripts["total"], rel=0.02)
    assert size["tile_mpx"] == pytest.approx(max((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in boxes) * stains / 1e6)
    assert size["tile_plane_mpx"] * stains == pytest.approx(size["tile_mpx"])
    assert 0 < size["tile_mtx"] <= size["mtx"]


def facts(raw):
    return open_raw("merscope", raw, Options()).inspect()
