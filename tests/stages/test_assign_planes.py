"""assign by outlines plane by plane: a transcript belongs to the cell whose outline in its own plane covers it."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely

import raw_fixtures as fx
from istseg.artifacts import planes as planes_io
from istseg.artifacts import spatial
from istseg.errors import InputError
from istseg.locate import PlaneLocator
from istseg.stages import assign, convert

IDS = np.array(["a", "b", "c"], object)


def write(folder: Path, outlines: list) -> tuple[Path, bool]:
    path = folder / "vendor_planes.parquet"
    return path, planes_io.write(path, iter(outlines), folder)


def test_own_plane_else_the_nearest_that_any_cell_has(tmp_path):
    path, differ = write(tmp_path, [("b", 2, shapely.box(0, 0, 10, 10)), ("a", 2, shapely.box(5, 0, 20, 10)), ("a", 4, shapely.box(0, 600, 10, 610))])
    assert differ
    locator = PlaneLocator(planes_io.Planes(path, IDS))
    points = [
        (2, 2, 2, 1),
        (7, 2, 2, 0),
        (2, 2, 4, -1),
        (2, 605, 4, 0),
        (2, 605, 2, -1),
        (2, 2, 0, 1),
        (2, 605, 9, 0),
        (2, 2, 3, 1),
        (2, 605, 3, -1),
        (2, 2, np.nan, 1),
    ]
    xyz = np.array([p[:3] for p in points], float)
    expected = [p[3] for p in points]
    assert locator(xyz).tolist() == expected
    assert [int(locator(row[None])[0]) for row in xyz] == expected, "in any batches"
    assert locator(xyz[:0]).tolist() == []


def test_many_cells_against_brute_force_in_every_batch(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(planes_io, "_GROUP_ROWS", 7)
    ids = np.array([f"c{i}" for i in range(60)], object)
    centres = rng.uniform(0, 1500, (60, 2)) * [0.05, 1]
    outlines = [(ids[i], z, shapely.Point(centres[i] + 3 * z).buffer(rng.uniform(5, 20))) for i in range(60) for z in range(3) if rng.random() > 0.2]
    path, _ = write(tmp_path, outlines)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vendor_planes.parquet"], "nothing is left of the rows that waited"
    assert pq.ParquetFile(path).num_row_groups > 20
    points = np.column_stack([rng.uniform(0, 75, 3000), rng.uniform(0, 1500, 3000), rng.integers(0, 3, 3000)])
    expected = [min((int(i[1:]) for i, z, polygon in outlines if z == p[2] and polygon.covers(shapely.Point(p[:2]))), default=-1) for p in points]
    assert max(expected) > 0
    locator = PlaneLocator(planes_io.Planes(path, ids))
    assert locator(points).tolist() == expected
    assert np.concatenate([locator(part) for part in np.array_split(points, 11)]).tolist() == expected


def test_one_outline_on_all_planes_is_no_difference(tmp_path):
    same = [(i, z, shapely.box(k, 0, k + 1, 1)) for k, i in enumerate("ab") for z in (0, 1)]
    path, differ = write(tmp_path, same)
    assert not differ
    assert pq.read_metadata(path).num_rows == 0
    assert write(tmp_path, same[:-1])[1], "b lacks a plane that a has"
    assert len(planes_io.Planes(path, IDS).planes) == 2


def test_files_that_do_not_fit_are_refused(tmp_path):
    path, _ = write(tmp_path, [("z", 0, shapely.box(0, 0, 1, 1)), ("z", 1, shapely.box(0, 0, 1, 2))])
    with pytest.raises(InputError, match="names the cell 'z'"):
        planes_io.Planes(path, IDS)
    pd.DataFrame({"cell_id": ["a"]}).to_parquet(path)
    with pytest.raises(InputError, match="not those of outlines by plane"):
        planes_io.Planes(path, IDS)
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        planes_io.Planes(path, IDS)


def both(raw: Path, out: Path, **given) -> tuple[anndata.AnnData, dict]:
    """Convert, then assign the vendor's cells by plane; its counts and record."""
    convert.run(raw=raw, sample="s", platform="merscope", out=out)
    found = out / "found"
    points = spatial.transcript_parts(out / "s.zarr")[0].parent
    assign.run(out / "sample.json", points, out / "vendor_cells.parquet", "vendor", found, planes=out / "vendor_planes.parquet", **given)
    return anndata.read_h5ad(found / "counts.h5ad"), json.loads((found / "assign.json").read_text())


@pytest.mark.parametrize("cells", ["parquet", "pixels", "hdf5"])
def test_a_synthetic_region_by_plane(tmp_path, cells):
    raw = tmp_path / "raw"
    truth = fx.merscope(raw, cells="hdf5" if cells == "hdf5" else "parquet")
    if cells != "hdf5":
        # The outline of the upper planes lies elsewhere.
        (raw / "cell_boundaries.parquet").unlink()
        name = "cellpose_mosaic_space.parquet" if cells == "pixels" else "cell_boundaries.parquet"
        fx.write_parquet_cells(raw / name, truth, in_pixels=cells == "pixels")
    counts, record = both(raw, tmp_path / "out")
    assert record["assignment"] == "planes"
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["details"]["vendor_cells_differ_by_plane"]
    outlines = pq.read_table(tmp_path / "out" / "vendor_planes.parquet").to_pandas()
    polygons = shapely.from_wkb(outlines["geometry"].to_numpy())
    table = pq.read_table(tmp_path / "out" / "found" / "transcripts.parquet").to_pandas()
    planes = np.array(sorted(outlines["z"].unique()))
    for row in table.sample(200, random_state=0).itertuples():
        plane = planes[np.argmin(np.abs(planes - row.z))]
        covering = [c for c, z, p in zip(outlines["cell_id"], outlines["z"], polygons, strict=True) if z == plane and p.covers(shapely.Point(row.x, row.y))]
        assert (row.cell_id in covering) if covering else row.cell_id is None or pd.isna(row.cell_id)
    assert counts.n_obs == len(set(outlines["cell_id"]))
    with pytest.raises(InputError, match="give one of them"):
        both(raw, tmp_path / "twice", assignment=tmp_path / "out" / "vendor_planes.parquet")


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "n_equal"), [("merscope_mouse_liver", 94), ("merscope_mouse_brain", 34)])
def test_real_cells_by_plane_have_the_counts_that_the_vendor_gives(tmp_path, name, n_equal):
    """The vendor counts plane by plane too: all cells of the liver; of the brain's those that the crop did not cut."""
    raw = fx.real_data() / name / "region_0"
    counts, record = both(raw, tmp_path)
    assert record["assignment"] == "planes"
    theirs = pd.read_csv(raw / "cell_by_gene.csv", dtype={0: str}, index_col=0)
    theirs.index = theirs.index.astype(str)
    genes = [g for g in counts.var_names if g in theirs]
    ours = counts.to_df().loc[:, genes]
    assert set(ours.index) <= set(theirs.index)
    assert (ours.to_numpy() == theirs.loc[ours.index, genes].to_numpy()).all(axis=1).sum() == n_equal
