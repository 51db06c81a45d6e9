"""Comparators with the real Nextflow and the real programs on a small simulated sample."""

from __future__ import annotations

import json
import os

import anndata
import geopandas as gpd
import pandas as pd
import pytest

from conftest import ROOT, Nextflow, Run
from istseg.stages import simulate

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1200)]

PROGRAMS = {"proseg": "proseg/bin/proseg", "comseg": "comseg/bin/python"}
SEGMENTATIONS = ("istseg", "vendor", "teacher", "watershed", "expansion", "proseg", "comseg")


def need_programs() -> None:
    """Skip where the programs are not installed; in CI they must be."""
    missing = [name for name, path in PROGRAMS.items() if not (ROOT / ".istseg" / "comparators" / path).exists()]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI must run {', '.join(missing)}; .ci/run installs them with `make comparators`", pytrace=False)
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; run `make comparators`")


@pytest.fixture(scope="module")
def sheet(nextflow_module: Nextflow):
    """One sample of 75 µm with nothing hard in it."""
    simulate.run(
        out=nextflow_module.folder / "sim", platform="merscope", width_um=75, height_um=75, planes=1, stains="Cellbound1;PolyT", degraded_fraction=0.0,
        degraded_contour=0.5, transcripts_per_um2=1.0, empty_fraction=0.1, generation="", seed=3, autofluorescence=0.0,
    )  # fmt: skip
    return nextflow_module.samplesheet("a,merscope,sim/raw")


def arguments(sheet, *more: str) -> tuple[object, ...]:
    # With the vendor's cells as the teacher the watershed is a comparator.
    compare = ",".join([*SEGMENTATIONS[1:], *more])
    return "--input", sheet, "--compare", compare, "--teacher", "vendor", "--exports", "none", "--umap_cells", 0, "--crops", 0, "--max_cpus", 1


@pytest.fixture(scope="module")
def compared(nextflow_module: Nextflow, sheet) -> Run:
    need_programs()
    return nextflow_module.run(*arguments(sheet), timeout=1000)


def test_every_comparator_is_assessed_and_shown(compared):
    folder = compared.outdir / "a"
    report = json.loads((compared.outdir / "report.json").read_text())
    (sample,) = report["samples"]
    assert set(sample["segmentations"]) == set(SEGMENTATIONS)
    assert sample["failed_comparators"] == []
    for name in SEGMENTATIONS:
        metrics = sample["segmentations"][name]
        assert metrics["n_cells"] > 15, name
        assert 0.2 < metrics["transcripts"]["fraction_in_cells"] < 1, name
    methods = {name: sample["segmentations"][name]["method"] for name in ("watershed", "expansion", "proseg", "comseg")}
    assert methods["proseg"]["program"] == f"proseg {(ROOT / 'containers' / 'proseg' / 'version').read_text().strip()}"
    assert methods["comseg"]["program"] == "comseg 1.8.5"
    assert methods["comseg"]["cell_diameter_um"] == 6.5
    assert methods["expansion"] == {"comparator": "expansion", "expansion_um": 5.0}
    assert methods["watershed"]["teacher"] == "watershed"
    assert {"proseg", "comseg"} <= set(compared.record()["versions"])
    assert {f"a/{name}.{kind}" for name in ("proseg", "comseg") for kind in ("cells.parquet", "assignment.parquet", "merge.json")} <= compared.files()
    for name in ("proseg", "comseg"):
        assert len(gpd.read_parquet(folder / f"{name}.cells.parquet")) == sample["segmentations"][name]["n_cells"]


@pytest.mark.parametrize("name", ["proseg", "comseg"])
def test_programs_say_whose_a_transcript_is(compared, name):
    """The counts are those of the program's own table, and the cells lie where the tissue's cells are."""
    folder = compared.outdir / "a"
    table = pd.read_parquet(folder / f"{name}.assignment.parquet").astype({"cell_id": str})
    transcripts = pd.read_parquet(folder / f"{name}.transcripts.parquet").astype({"cell_id": object})
    inside = transcripts[transcripts["cell_id"].notna()].set_index("transcript_id")["cell_id"]
    assert inside.sort_index().to_dict() == table.set_index("transcript_id")["cell_id"].to_dict()
    counts = anndata.read_h5ad(folder / name / "counts.h5ad")
    assert counts.X.sum() == (transcripts["cell_id"].notna() & ~transcripts["is_control"]).sum()
    truth = pd.read_parquet(compared.folder / "sim" / "truth" / "transcripts.parquet")
    both = pd.DataFrame({"found": inside, "true": truth.set_index("transcript_id")["cell_id"]}).dropna()
    right = both.groupby("found")["true"].agg(lambda cells: cells.value_counts().iloc[0]).sum() / len(both)
    assert right > 0.55, "transcripts of a cell found are mostly of one true cell"


# Stands in for Baysor, which is not here: keeps its command line and answers in the form that Baysor 0.7.1 documents, every nucleus a cell.
BAYSOR = """#!/bin/bash
[ "$1" != --version ] || { echo 0.7.1; exit; }
printf '%%s\\n' "$@" > %(seen)s
{
    echo transcript_id,x,y,z,gene,prior,molecule_id,cell,is_noise
    tail -n +2 "${@: -2:1}" | awk -F, '{ noise = $6 == 0; print $0 "," NR "," (noise ? "" : "CRstandin-" $6) "," (noise ? "true" : "false") }'
} > output/segmentation.csv
echo '{"type": "FeatureCollection", "features": []}' > output/segmentation_polygons_2d.json
"""


def test_a_comparator_that_fails_stops_nothing_else(compared, nextflow_module, sheet):
    """Proseg ends in error by an option that it does not know; the rest of the run is as before, and its exit code tells. Baysor gets its exact command."""
    (nextflow_module.folder / "fault.config").write_text("process { withName: 'PROSEG' { ext.args = '--no-such-option' } }\n")
    baysor, seen = nextflow_module.folder / "bay's or", nextflow_module.folder / "seen.txt"
    baysor.write_text(BAYSOR % {"seen": seen})
    baysor.chmod(0o755)
    given = (*arguments(sheet, "baysor"), "--baysor", baysor.name, "--baysor_min_molecules", 12)
    run = nextflow_module.run(*given, "-c", "fault.config", "-resume", ok=False, outdir="failed", timeout=600)
    assert run.code != 0
    (failure,) = run.record()["failures"]
    assert (failure["sample"], failure["stage"], failure["segmentation"]) == ("a", "proseg", "proseg")
    assert "--no-such-option" in failure["message"]
    (sample,) = json.loads((run.outdir / "report.json").read_text())["samples"]
    assert set(sample["segmentations"]) == {*SEGMENTATIONS, "baysor"} - {"proseg"}
    assert sample["failure"] is None
    assert [f["segmentation"] for f in sample["failed_comparators"]] == ["proseg"]
    assert "The comparator proseg failed" in (run.outdir / "report.html").read_text(encoding="utf-8")
    assert "PROSEG (a proseg)" in run.text
    assert seen.read_text().split("\n")[:-1] == [
        "run", "--x-column", "x", "--y-column", "y", "--gene-column", "gene", "--prior-segmentation-confidence", "1", "--config.data.force_2d=true",
        "--polygon-format", "FeatureCollection", "--count-matrix-format", "tsv", "--output", "output/segmentation.csv", "--min-molecules-per-cell", "12",
        "input/prepared/transcripts.csv", ":prior",
    ]  # fmt: skip
    assert run.record()["versions"]["baysor"] == "0.7.1"
    assert sample["segmentations"]["baysor"]["transcripts"]["in_cells"] > 500


def test_what_comparators_lack_is_refused_before_any_work(nextflow_module, sheet):
    run = nextflow_module.run("--input", sheet, "--compare", "cellpose,expansion,baysor", ok=False, outdir="refused", timeout=300)
    assert run.code != 0
    assert {row["process"] for row in run.trace()} == {"PREFLIGHT"}
    for words in ("--compare cellpose: needs --nuclei_weights", "--compare cellpose: needs --cyto_weights", "--compare baysor: needs --baysor"):
        assert words in run.text
    assert "Nothing was run" in run.text
