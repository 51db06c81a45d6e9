"""Vendor cells that differ by plane, through the real Nextflow: counts against the vendor's own table and against outlines looked up one by one."""

from __future__ import annotations

import json
from contextlib import suppress

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import shapely

from conftest import Nextflow, Run
from istseg.stages import simulate

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1500)]

SIMULATED, REAL = "hdf5", "mouse_liver"
PLANES = 3


@pytest.fixture(scope="module")
def compared(nextflow_module: Nextflow, request: pytest.FixtureRequest) -> Run:
    """A simulated region of the older generation, whose cells shrink by plane and lack some, and the real liver where it is."""
    simulate.run(
        out=nextflow_module.folder / "sim", platform="merscope", width_um=75, height_um=75, planes=PLANES, stains="Cellbound1;PolyT", degraded_fraction=0.0,
        degraded_contour=0.5, transcripts_per_um2=1.0, empty_fraction=0.1, generation="hdf5", seed=3, autofluorescence=0.0,
    )  # fmt: skip
    rows = [f"{SIMULATED},merscope,sim/raw"]
    with suppress(pytest.skip.Exception):
        rows.append(f"{REAL},merscope,{request.getfixturevalue('real_data')}/merscope_mouse_liver/region_0")
    sheet = nextflow_module.samplesheet(*rows)
    quick = ("--teacher", "vendor", "--exports", "none", "--umap_cells", 0, "--crops", 0, "--max_cpus", 2)
    return nextflow_module.run("--input", sheet, "--compare", "vendor", *quick, timeout=1400)


def counted(run: Run, sample: str) -> pd.DataFrame:
    """Cells × genes of the vendor's cells, which must have been assigned by plane."""
    folder = run.outdir / sample
    assert json.loads((folder / "sample.json").read_text())["details"]["vendor_cells_differ_by_plane"]
    counts = anndata.read_h5ad(folder / "vendor" / "counts.h5ad")
    assert counts.uns["istseg"]["assignment"] == "planes"
    return counts.to_df().astype(int)


def outlines(raw) -> dict[str, dict[int, shapely.Polygon]]:
    """Cell → plane → outline, as the instrument's files have them."""
    found: dict[str, dict[int, shapely.Polygon]] = {}
    for path in sorted((raw / "cell_boundaries").glob("*.hdf5")):
        with h5py.File(path) as stored:
            for cell, group in stored["featuredata"].items():
                rings = {z: group.get(f"zIndex_{z}/p_0/coordinates") for z in range(PLANES)}
                found[cell] = {z: shapely.Polygon(ring[0]) for z, ring in rings.items() if ring is not None}
    return found


@pytest.mark.real_data
def test_real_cells_have_the_counts_of_the_vendors_own_table(compared, real_data):
    ours = counted(compared, REAL)
    theirs = pd.read_csv(real_data / "merscope_mouse_liver" / "region_0" / "cell_by_gene.csv", dtype={0: str}, index_col=0)
    genes = [gene for gene in ours.columns if gene in theirs]
    assert len(ours) == 94 and len(genes) > 200
    pd.testing.assert_frame_equal(ours[genes], theirs.loc[ours.index, genes], check_names=False, check_dtype=False)


def test_simulated_cells_have_the_counts_of_outlines_looked_up_one_by_one(compared):
    raw = compared.outdir.parent / "sim" / "raw"
    ours = counted(compared, SIMULATED)
    cells = outlines(raw)
    table = pd.read_csv(raw / "detected_transcripts.csv")
    assert all(len(planes) < PLANES or len({polygon.wkb for polygon in planes.values()}) > 1 for planes in cells.values())
    assert len(ours) > 15
    covered = np.zeros(len(table), int)
    expected = pd.DataFrame(0, index=ours.index, columns=ours.columns)
    for z in range(PLANES):
        rows = np.flatnonzero(table["global_z"] == z)
        points = shapely.points(table["global_x"].to_numpy()[rows], table["global_y"].to_numpy()[rows])
        for cell in ours.index:
            if z not in cells[cell]:
                continue
            inside = rows[shapely.covers(cells[cell][z], points)]
            covered[inside] += 1
            expected.loc[cell] += table["gene"].iloc[inside].value_counts().reindex(expected.columns, fill_value=0)
    assert covered.max() == 1, "simulated cells lie apart"
    pd.testing.assert_frame_equal(ours, expected, check_names=False, check_dtype=False)
