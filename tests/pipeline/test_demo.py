"""The embedded demo and a real sample through the real stages, end to end, with no network."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import anndata
import geopandas as gpd
import pandas as pd
import pytest

from conftest import ROOT, Nextflow, Run
from istseg.artifacts.metrics import FLAGS, Metrics
from istseg.artifacts.sample import Sample

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1500)]

SAMPLES = ("demo_merscope", "demo_cosmx")
SEGMENTATIONS = ("istseg", "teacher", "vendor")


def no_network() -> tuple[str, ...]:
    """`unshare -n` where this user may: the run has no network interface but the loop."""
    wrapper = ("unshare", "--net")
    allowed = subprocess.run([*wrapper, "true"], capture_output=True).returncode == 0
    return wrapper if allowed else ()


@pytest.fixture(scope="module")
def demo(nextflow_module: Nextflow) -> Run:
    return nextflow_module.run("-profile", "demo", timeout=1400, wrapper=no_network())


def test_everything_that_the_docs_promise_is_there(demo):
    kinds = json.loads((ROOT / "assets" / "outputs.json").read_text(encoding="utf-8"))
    promised = {path for kind in kinds if not kind.get("optional") for path in kind["paths"]}
    assert len(promised) > 15
    files = demo.files()
    for pattern in promised:
        for sample in SAMPLES:
            for segmentation in SEGMENTATIONS:
                concrete = pattern.replace("<sample>", sample).replace("<segmentation>", segmentation).rstrip("/…")
                for one in alternatives(concrete):
                    one = re.escape(one).replace(r"\*", "[^/]+")
                    assert any(re.fullmatch(f"{one}(/.*)?", file) for file in files), one


def alternatives(pattern: str) -> list[str]:
    found = re.search(r"\{(.+?)\}", pattern)
    return [pattern.replace(found.group(), option) for option in found.group(1).split(",")] if found else [pattern]


def test_outputs_json_and_checksums_tell_every_file(demo):
    from collections import Counter

    listed = {entry["path"]: entry for entry in json.loads((demo.outdir / "outputs.json").read_text())["files"]}
    about = {"outputs.json", "checksums.sha256", "ro-crate-metadata.json"}
    about |= {f"pipeline_info/{name}" for name in ("trace.tsv", "execution.html", "timeline.html", "dag.html")}
    assert set(listed) | about == demo.files(), "a file that assets/outputs.json does not describe, or one that is not there"
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "checksums.sha256"], cwd=demo.outdir, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert Counter(entry["stage"] for entry in listed.values())["export"] >= 2 * 6
    assert listed["demo_merscope/istseg/counts.h5ad"]["sample"] == "demo_merscope"
    assert listed["demo_merscope/teacher/counts.h5ad"]["segmentation"] == "teacher"
    assert listed["demo_merscope/labels.zarr"]["files"] > 1


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_transcript_is_counted_once_and_every_cell_is_judged(demo, sample):
    facts = Sample.read(demo.outdir / sample / "sample.json")
    for segmentation in SEGMENTATIONS:
        counts = anndata.read_h5ad(demo.outdir / sample / segmentation / "counts.h5ad")
        transcripts = pd.read_parquet(demo.outdir / sample / f"{segmentation}.transcripts.parquet")
        metrics = Metrics.read(demo.outdir / sample / segmentation / "metrics.json")
        assert len(transcripts) == facts.transcripts["total"]
        genes = transcripts[~transcripts["is_control"]]
        inside = genes["cell_id"].notna() & (genes["cell_id"] != "")
        assert counts.X.sum() == inside.sum()
        assert inside.sum() == metrics.transcripts["in_cells"] + metrics.transcripts["in_cells_outside_image"]
        assert len(genes) == inside.sum() + metrics.transcripts["outside_cells"]
        assert counts.n_obs == metrics.n_cells > 20
        assert sum(metrics.flags[flag] for flag in FLAGS) + metrics.flags["outside_image"] == metrics.n_cells
        assert counts.obs["qc_reason"].notna().all()


def test_the_report_shows_all_samples_and_needs_nothing_else(demo):
    page = (demo.outdir / "report.html").read_text(encoding="utf-8")
    assert all(sample in page for sample in SAMPLES)
    assert not re.search(r"<(script|img|link)[^>]+(src|href)=[\"']?https?://", page), "the report loads something from the network"
    assert json.loads((demo.outdir / "report.json").read_text())["verdict"]["n_samples"] == 2
    assert f"Report: {demo.outdir}/report.html" in demo.text
    judged = json.loads((demo.outdir / "report.json").read_text())["samples"]
    for sample in judged:
        assert (f"\n  {sample['sample']}: " in demo.text) == (sample["verdict"] != "pass")


def test_resume_does_nothing_but_the_report(demo, nextflow_module):
    again = nextflow_module.run("-profile", "demo", "-resume", timeout=600)
    assert {row["process"] for row in again.trace() if row["status"] != "CACHED"} == {"REPORT"}


# As if tiles took 40 times as long as they do: a minute is not enough for all tiles of so small a sample.
SLOW = "process { withName: 'TEACH' { ext.seconds = [start: 1.51, tile_mpx: 40] } }\n"


def test_cells_do_not_depend_on_tiles_and_tasks(demo, nextflow_module):
    """Another tiling, and as many tiles for a task as take `--task_minutes`, give the same cells, border cells included. More tiles ask for more time."""
    (nextflow_module.folder / "slow.config").write_text(SLOW)
    given = ("-profile", "demo", "--tile_um", 90, "--task_minutes", 1, "--umap_cells", 0, "--crops", 1, "--compare", "none", "--exports", "none")
    other = nextflow_module.run(*given, "-c", "slow.config", "-resume", outdir="tiled", timeout=1400)
    teach = {run.outdir: sum(row["process"] == "TEACH" for row in run.trace()) for run in (demo, other)}
    assert teach[demo.outdir] == len(SAMPLES) < teach[other.outdir], "fewer minutes for a task, more tasks"
    sizes = {s["sample"]: s["size"] for s in json.loads((other.outdir / "pipeline_info" / "preflight.json").read_text())["samples"]}
    for sample in SAMPLES:
        tasks = [row for row in other.trace() if row["process"] == "TEACH" and row["tag"].split()[0] == sample]
        tiles = [len(list((Path(row["workdir"]) / "input" / "tiles").iterdir())) for row in tasks]
        seconds = 40 * sizes[sample]["tile_mpx"]
        together = max(1, round(60 / seconds))
        assert max(tiles) == min(together, sum(tiles))
        assert len(tasks) == -(-sum(tiles) // together)
        for row, n in zip(tasks, tiles, strict=True):
            minutes, rest = re.fullmatch(r"(\d+)m(?: (\d+)s)?", row["time"]).groups()
            assert int(minutes) * 60 + int(rest or 0) == pytest.approx(1800 + 4 * (1.51 + n * seconds), abs=1.5)
        one, many = (gpd.read_parquet(outdir / sample / "istseg.cells.parquet") for outdir in (demo.outdir, other.outdir))
        assert sorted(one.geometry.normalize().to_wkb(hex=True)) == sorted(many.geometry.normalize().to_wkb(hex=True))


def test_a_real_sample(nextflow, real_data):
    sheet = nextflow.samplesheet(f"mouse_liver,merscope,{real_data}/merscope_mouse_liver/region_0")
    run = nextflow.run("--input", sheet, "--max_cpus", 2, "--umap_cells", 0, timeout=900, wrapper=no_network())
    counts = anndata.read_h5ad(run.outdir / "mouse_liver" / "istseg" / "counts.h5ad")
    assert counts.n_obs > 5
    facts = Sample.read(run.outdir / "mouse_liver" / "sample.json")
    assert facts.transcripts["total"] == 5936
    assert [stain.name for stain in facts.membranes] == ["Cellbound1", "Cellbound2"]


def test_the_tutorial_runs_as_it_is_written(demo, tmp_path):
    """Every block of docs/tutorial.md, in order; its run of the pipeline is the one that the other tests look at."""
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", page, re.M | re.S)
    for name in (".venv", "assets", "nextflow_schema.json"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "demo").symlink_to(demo.outdir)
    said, ran = [], 0
    for language, code in blocks:
        if "nextflow run" in code:
            assert code.split() == ["bin/nextflow", "run", ".", "-profile", "demo", "--outdir", "results/demo"]
            ran += 1
            continue
        command = ["bash", "-euc", code] if language == "bash" else [".venv/bin/python", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    assert ran == 1 and len(said) >= 6
    assert any("merscope" in text and "cosmx" in text for text in said), "the samplesheet names both"
    assert (tmp_path / "tutorial" / "umap.png").stat().st_size > 5000
    assert any(re.search(r"[1-9]\d* cells and [1-9]\d* transcripts", text) for text in said)
