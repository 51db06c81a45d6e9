"""Xenium: the output of XOA 1 to 4, read through the same interface as the other platforms."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import raw_fixtures as fx
from istseg.artifacts import spatial
from istseg.artifacts.sample import Sample, apply_affine
from istseg.errors import InputError
from istseg.raw import open_raw
from istseg.raw.base import Options
from istseg.stages import convert, preflight

VERSIONS = ["xenium-1.0.1", "xenium-1.7.6.0", "xenium-2.0.0.10", "xenium-3.0.0.15", "xenium-4.0.0.0"]


def inspected(root: Path, **options):
    reader = open_raw("xenium", root, Options(**options))
    return reader, reader.inspect()


@pytest.mark.parametrize("version", VERSIONS)
def test_pixels_transcripts_and_cells_are_those_of_the_folder(tmp_path: Path, version: str) -> None:
    truth = fx.xenium(tmp_path / "raw", version=version)
    convert.run(raw=tmp_path / "raw", sample="s", platform="xenium", out=tmp_path / "out")
    sample = Sample.read(tmp_path / "out" / "sample.json")
    expected = [("DAPI", "nucleus")]
    if "-1." not in version:
        expected += [("ATP1A1/CD45/E-Cadherin", "membrane"), ("18S", "membrane"), ("AlphaSMA/Vimentin", "other")]
    assert [(s.name, s.role) for s in sample.stains] == expected
    image = spatial.image_level(tmp_path / "out" / "s.zarr")[:]
    for channel, stain in zip(image, sample.stains, strict=True):
        np.testing.assert_array_equal(channel, truth["images"][stain.name])
    assert sample.pixel_size_um == 0.2125 and sample.details["generation"] == version
    raw = truth["transcripts"]
    good = (raw["qv"] >= 20).to_numpy()
    parts = [pq.read_table(p).to_pandas() for p in spatial.transcript_parts(tmp_path / "out" / "s.zarr")]
    points = pd.concat(parts, ignore_index=True).sort_values("transcript_id", ignore_index=True)
    assert points["transcript_id"].tolist() == np.flatnonzero(good).tolist(), "rows of the whole table, without those of low quality"
    assert any(f"{(~good).sum()} of {len(raw)} transcripts" in w for w in sample.details["warnings"])
    np.testing.assert_allclose(apply_affine(sample.affine, points[["x", "y"]].to_numpy()), np.column_stack([truth["px"], truth["py"]])[good], atol=1e-3)
    assert points["gene"].astype(str).tolist() == raw["feature_name"][good].tolist()
    assert points["z"].tolist() == np.floor(raw["z_location"][good] / 3).tolist()
    assert sample.genes == ["EPCAM", "KRT8"] and len(sample.controls) == 3
    assert points["vendor_cell"].isna().tolist() == raw["cell_id"].astype(str).isin(["UNASSIGNED", "-1"])[good].tolist()
    cells = gpd.read_parquet(tmp_path / "out" / "vendor_cells.parquet").set_index("cell_id")
    assert set(points["vendor_cell"].dropna()) == set(cells.index) == {str(name) for name in truth["rings"]}
    for name, ring in truth["rings"].items():
        np.testing.assert_allclose(cells.loc[str(name), "geometry"].bounds, [*ring.min(0), *ring.max(0)])


def test_preflight_takes_it_like_any_platform(tmp_path: Path) -> None:
    fx.xenium(tmp_path / "raw", n=3000)
    (tmp_path / "sheet.csv").write_text("sample,platform,path\nx1,xenium,raw\n")
    preflight.run(samplesheet=tmp_path / "sheet.csv", out=tmp_path / "out")
    found = json.loads((tmp_path / "out" / "preflight.json").read_text())["samples"][0]
    assert found["platform"] == "xenium" and found["vendor_cells"] == "cell_boundaries.parquet"
    assert found["evidence"]["orientation"]["evidence"] == "density"


def damaged(root: Path, what: str) -> str:
    experiment = root / "experiment.xenium"
    if what == "no experiment":
        experiment.unlink()
        return "give the output folder of one region"
    if what == "cut off":
        experiment.write_text(experiment.read_text()[:20])
        return "is not valid JSON"
    if what == "no pixel size":
        experiment.write_text("{}")
        return "says no usable pixel_size"
    if what == "no images":
        for path in (root / "morphology_focus").iterdir():
            path.unlink()
        return "holds no image named"
    if what == "no transcripts":
        (root / "transcripts.parquet").unlink()
        return "has no transcript table"
    pd.read_parquet(root / "transcripts.parquet").drop(columns="x_location").to_parquet(root / "transcripts.parquet")
    return "lacks the columns x_location"


@pytest.mark.parametrize("what", ["no experiment", "cut off", "no pixel size", "no images", "no transcripts", "no column"])
def test_damaged_folders(tmp_path: Path, what: str) -> None:
    fx.xenium(tmp_path / "raw", n=50)
    message = damaged(tmp_path / "raw", what)
    with pytest.raises(InputError, match=message):
        inspected(tmp_path / "raw")


def test_options_of_other_platforms(tmp_path: Path) -> None:
    fx.xenium(tmp_path / "raw", n=50)
    with pytest.raises(InputError, match="fovs are only for CosMx"):
        inspected(tmp_path / "raw", fovs=frozenset({1}))
    _, facts = inspected(tmp_path / "raw", pixel_size_um=0.3, z_planes="3")
    assert facts.pixel_size_um == 0.2125
    assert sum("is not used" in w for w in facts.warnings) == 2
    (tmp_path / "raw" / "cell_boundaries.parquet").unlink()
    reader, facts = inspected(tmp_path / "raw")
    assert facts.cells_from is None and reader.vendor_cells(None) == ([], [], {})


def test_a_platform_is_one_file_and_one_line() -> None:
    """No module but the registry, the schema of the samplesheet and the words of the report names it."""
    source = Path(preflight.__file__).parents[1]
    naming = {str(p.relative_to(source)) for p in source.rglob("*.py") if '"xenium"' in p.read_text()}
    assert naming == {"raw/xenium.py", "raw/__init__.py", "report/methods.py"}
