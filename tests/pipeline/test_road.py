"""The road of the data as Nextflow walks it, with stubs in the place of the stages: joins, publishing, failures, retries, resuming."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, Nextflow, Run
from istseg.artifacts.run import Run as RunRecord

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

SAMPLE_FILES = {
    "sample.json",
    "vendor_cells.parquet",
    "qc/thresholds.json",
    "istseg.cells.parquet",
    "teacher.cells.parquet",
    "nuclei.parquet",
    "merge.json",
    "exports/stub.json",
    "comparison.json",
    *(f"{name}.transcripts.parquet" for name in ("istseg", "teacher", "vendor")),
    *(f"{name}/{file}" for name in ("istseg", "teacher", "vendor") for file in ("counts.h5ad", "metrics.json")),
}


def samples(nextflow: Nextflow, *names: str):
    raw = nextflow.folder / 'raw\'s "folder" ü $HOME'
    raw.mkdir(exist_ok=True)
    return nextflow.samplesheet(*(f'{name},merscope,"{raw.name.replace(chr(34), chr(34) * 2)}"' for name in names))


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def tasks(run: Run, status: str = "COMPLETED") -> Counter:
    return Counter(row["process"] for row in run.trace() if row["status"] == status)


def manifest_of(run: Run) -> None:
    """outputs.json, checksums, RO-Crate, parameters and versions are there and fit each other and the files."""
    listed = {entry["path"]: entry for entry in json.loads((run.outdir / "outputs.json").read_text())["files"]}
    own = {f"pipeline_info/{name}" for name in ("trace.tsv", "execution.html", "timeline.html", "dag.html")}
    about = {"outputs.json", "checksums.sha256", "ro-crate-metadata.json"}
    stubs = {"a/exports/stub.json", "b/exports/stub.json"}
    assert run.files() - own - about - stubs == set(listed)
    sums = dict(reversed(line.split("  ")) for line in (run.outdir / "checksums.sha256").read_text().splitlines())
    assert sums["a/sample.json"] == hashlib.sha256((run.outdir / "a" / "sample.json").read_bytes()).hexdigest() == listed["a/sample.json"]["sha256"]
    assert set(sums) == {path for path, entry in listed.items() if "files" not in entry}, "the stubs hold no stores"
    graph = {entity["@id"]: entity for entity in json.loads((run.outdir / "ro-crate-metadata.json").read_text())["@graph"]}
    parts = [part["@id"] for part in graph["./"]["hasPart"]]
    assert set(parts) == {f"{name}/" if "files" in entry else name for name, entry in listed.items()} and all(part in graph for part in parts)
    action = next(entity for entity in graph.values() if entity["@type"] == "CreateAction")
    assert {"#sample-a", "#sample-b"} <= {thing["@id"] for thing in action["object"]} and action["actionStatus"]["@id"].endswith("CompletedActionStatus")
    assert all(thing["@id"] in graph for thing in [*action["object"], *action["result"], action["instrument"]])
    params = json.loads((run.outdir / "pipeline_info" / "params.json").read_text())
    assert params["tiles_per_task"] == 1 and "help" not in params
    versions = yaml.safe_load((run.outdir / "pipeline_info" / "software_versions.yml").read_text())["istseg"]
    assert versions == {name: str(version) for name, version in run.record()["versions"].items()}


@pytest.mark.parametrize(("parser", "finetune"), [("v1", "none"), ("v2", "cohort")])
def test_stub_run_of_the_whole_pipeline(nextflow, parser, finetune):
    start = time.monotonic()
    # v2 of Nextflow 25.04 reads the command line too late for the place of the trace (docs/usage.md).
    (nextflow.folder / "p.yaml").write_text("outdir: out\n")
    arguments = ("-stub-run", "--finetune", finetune, "--tiles_per_task", 1, "-params-file", "p.yaml")
    run = nextflow.run("--input", samples(nextflow, "a", "b"), *arguments, parser=parser)
    assert time.monotonic() - start < 120, "60 s on a machine of its own"
    files = run.files()
    for name in ("a", "b"):
        assert {f"{name}/{file}" for file in SAMPLE_FILES} <= files, {f"{name}/{file}" for file in SAMPLE_FILES} - files
    assert {"report.html", "report.json", "metrics.tsv", "istseg_mqc.json", "pipeline_info/run.json", "pipeline_info/preflight.json"} <= files
    assert ("cohort/model/model.safetensors" in files) == (finetune == "cohort")
    record = RunRecord.read(run.outdir / "pipeline_info" / "run.json")
    assert [s["sample"] for s in record.samples] == ["a", "b"]
    assert {"istseg", "nextflow", "python", "torch", "cellpose", "spatialdata", "anndata", "scanpy"} <= set(record.versions)
    assert {"input", "outdir", "tiles_per_task"} <= set(record.changed)
    assert "base_model" not in record.changed
    assert record.failures == []
    resources = {row["stage"]: row for row in record.resources}
    assert {"convert", "segment", "assess"} <= set(resources)
    assert resources["segment"]["tasks"] == 4
    assert all(0 <= row["longest_seconds"] <= row["seconds"] for row in record.resources)
    # Images are named in the configuration, but no engine runs them.
    assert all(row["containers"] == [] and row["gpu_hours"] == 0 and row["memory_gb_hours"] >= 0 for row in record.resources)
    assert "Done after" in run.text
    manifest_of(run)
    if parser == "v1":
        done = tasks(run)
        assert done == {
            "PREFLIGHT": 1, "CONVERT": 2, "TILE": 2, "TEACH": 4, "CALIBRATE": 2, "CURATE": 4, "SEGMENT": 4,
            "MERGE": 2, "ASSIGN": 6, "ASSESS": 6, "COEXPRESSION": 2, "COMPARE": 2, "REGIONS": 2, "EXPORT": 2, "REPORT": 1,
        }  # fmt: skip
        assert all((run.outdir / "pipeline_info" / name).is_file() for name in ("timeline.html", "execution.html", "dag.html"))


def test_without_comparison_exports_and_with_one_model_per_sample(nextflow):
    run = nextflow.run("--input", samples(nextflow, "a", "b"), "-stub-run", "--compare", "none", "--exports", "none", "--finetune", "sample")
    done = tasks(run)
    assert done["ASSIGN"] == done["ASSESS"] == done["TRAIN"] == 2
    assert "EXPORT" not in done and "COMPARE" not in done
    assert {"a/model/model.safetensors", "b/model/decision.json"} <= run.files()


def test_every_comparator_goes_through_the_same_stages(nextflow):
    """The run's teacher by its own name is `teacher`; foreign programs go through prepare and collect."""
    asked = "vendor,watershed,cellpose,expansion,genesegnet,proseg,comseg,baysor"
    (nextflow.folder / "weights").touch()
    weights = ("--nuclei_weights", nextflow.folder / "weights", "--cyto_weights", nextflow.folder / "weights")
    run = nextflow.run("--input", samples(nextflow, "a", "b"), "-stub-run", "--compare", asked, "--exports", "none", *weights)
    done = tasks(run)
    assert {name: done[name] for name in ("COMPARATOR_TILES", "COMPARATOR_MERGE", "PROSEG", "COMSEG", "BAYSOR")} == {
        "COMPARATOR_TILES": 6, "COMPARATOR_MERGE": 6, "PROSEG": 2, "COMSEG": 2, "BAYSOR": 2,
    }  # fmt: skip
    assert done["COMPARATOR_PREPARE"] == done["COMPARATOR_COLLECT"] == 6
    assert done["ASSIGN"] == done["ASSESS"] == 18
    files = run.files()
    for name in ("istseg", "teacher", "vendor", "cellpose", "expansion", "genesegnet", "proseg", "comseg", "baysor"):
        assert {f"{sample}/{name}/metrics.json" for sample in "ab"} <= files
    assert {"a/expansion.cells.parquet", "a/expansion.merge.json", "a/proseg.cells.parquet", "a/proseg.assignment.parquet"} <= files
    assert "a/watershed.cells.parquet" not in files


# A stage is made to fail inside its task: `touch` of its stub becomes a function that ends it.
# Sample b has bad input until the flag is there; a is killed once.
FAULTS = """
process {
    withName: 'MERGE' {
        beforeScript = {
            "export PATH=%(bin)s:\\$PATH; " +
            (task.tag == 'b' ? '[ -e %(flag)s ] || { touch() { echo "ERROR: made to fail: mend it" >&2; exit 65; }; export -f touch; }' : '') +
            (task.tag == 'a' && task.attempt == 1 ? 'touch() { exit 137; }; export -f touch' : '')
        }
    }
}
"""


def test_a_failed_sample_does_not_stop_the_others_and_resume_does_only_what_is_missing(nextflow):
    flag = nextflow.folder / "mended"
    (nextflow.folder / "faults.config").write_text(FAULTS % {"flag": flag, "bin": ROOT / ".venv" / "bin"})
    arguments = ("-c", "faults.config", "--input", samples(nextflow, "a", "b", "c"), "-stub-run", "--compare", "none")
    # A second name of the file of an earlier run: it keeps its text when the new one is renamed into place.
    (nextflow.folder / "out" / "b").mkdir(parents=True)
    (nextflow.folder / "out" / "b" / "FAILED.txt").write_text("earlier")
    (nextflow.folder / "kept").hardlink_to(nextflow.folder / "out" / "b" / "FAILED.txt")
    run = nextflow.run(*arguments, ok=False)

    assert run.code != 0
    assert (nextflow.folder / "kept").read_text() == "earlier", "FAILED.txt was not written whole"
    assert not list((run.outdir / "b").glob(".*"))
    merged = {(row["tag"], row["attempt"]): row for row in run.trace() if row["process"] == "MERGE"}
    assert {key: row["status"] for key, row in merged.items()} == {("a", "1"): "FAILED", ("a", "2"): "COMPLETED", ("b", "1"): "FAILED", ("c", "1"): "COMPLETED"}
    assert merged["a", "2"]["memory"] != merged["a", "1"]["memory"], "a retry after 137 asks for more memory"
    assert merged["b", "1"]["exit"] == "65"
    files = run.files()
    assert {"a/istseg/counts.h5ad", "c/istseg/counts.h5ad", "report.html"} <= files
    assert "b/istseg/counts.h5ad" not in files
    failures = run.record()["failures"]
    assert failures == [{"sample": "b", "stage": "merge", "message": "made to fail: mend it"}]
    assert [s["sample"] for s in run.record()["samples"]] == ["a", "b", "c"]
    closing = run.text.split("Ended with failures")[1]
    assert "MERGE (b)" in closing
    assert "made to fail: mend it" in closing
    assert merged["b", "1"]["workdir"] in closing
    mark = (run.outdir / "b" / "FAILED.txt").read_text()
    assert "merge: made to fail: mend it" in mark and "earlier run" in mark
    assert not (run.outdir / "a" / "FAILED.txt").exists()
    assert "MERGE (a)" not in closing

    flag.touch()
    again = nextflow.run(*arguments, "-resume")
    done = {(row["process"], row["tag"]) for row in again.trace() if row["status"] == "COMPLETED"}
    assert done == {("MERGE", "b"), ("ASSIGN", "b istseg"), ("ASSESS", "b istseg"), ("REGIONS", "b"), ("EXPORT", "b"), ("REPORT", "all samples")}
    assert "b/istseg/counts.h5ad" in again.files()
    assert "b/FAILED.txt" not in again.files()
    assert again.record()["failures"] == []


def test_a_sample_goes_on_without_the_colours_of_its_genes(nextflow):
    fault = f'export PATH={ROOT / ".venv" / "bin"}:$PATH; touch() {{ echo "ERROR: made to fail" >&2; exit 65; }}; export -f touch'
    (nextflow.folder / "faults.config").write_text(f"process {{ withName: 'COEXPRESSION' {{ beforeScript = '{fault}' }} }}")
    run = nextflow.run("-c", "faults.config", "--input", samples(nextflow, "a"), "-stub-run", ok=False)
    assert run.code != 0
    assert {"a/istseg/counts.h5ad", "a/exports/stub.json", "report.html"} <= run.files()
    done = tasks(run)
    assert done["REGIONS"] == 1 and done["ASSESS"] == 3 and "COEXPRESSION" not in done


def test_a_sample_that_lacks_a_tile_gives_no_cells(nextflow):
    path = f"export PATH={ROOT}/.venv/bin:\\$PATH"
    fails = "; mkdir() { exit 65; }; export -f mkdir"
    fault = f"""process {{ withName: 'SEGMENT' {{ beforeScript = {{ "{path}" + (task.tag == 'b 1' ? '{fails}' : '') }} }} }}\n"""
    (nextflow.folder / "faults.config").write_text(fault)
    run = nextflow.run("-c", "faults.config", "--input", samples(nextflow, "a", "b"), "-stub-run", "--tiles_per_task", 1, "--exports", "none", ok=False)
    assert run.code != 0
    assert {row["tag"] for row in run.trace() if row["process"] == "MERGE"} == {"a"}
    assert [f["sample"] for f in run.record()["failures"]] == ["b"]
    assert "report.html" in run.files()


def test_a_new_sample_does_not_make_the_others_run_again(nextflow):
    arguments = ("-stub-run", "--compare", "none", "--exports", "none")
    nextflow.run("--input", samples(nextflow, "a"), *arguments)
    run = nextflow.run("--input", samples(nextflow, "a", "b"), *arguments, "-resume")
    assert {row["tag"].split(" ")[0] for row in run.trace() if row["status"] == "COMPLETED" and row["process"] not in ("PREFLIGHT", "REPORT")} == {"b"}


def test_raw_files_that_changed_end_a_resumed_run_unless_that_is_allowed(nextflow):
    arguments = ("--input", samples(nextflow, "a"), "-stub-run", "--compare", "none", "--exports", "none")
    (raw,) = (folder for folder in nextflow.folder.iterdir() if folder.name.startswith("raw"))
    (raw / "images").mkdir()
    image = raw / "images" / "mosaic_DAPI_z0.tif"
    image.write_text("before")
    nextflow.run(*arguments)
    assert {"PREFLIGHT", "CONVERT"} <= set(tasks(nextflow.run(*arguments, "-resume"), "CACHED"))

    image.write_text("after, longer")
    (raw / "more").touch()
    refused = nextflow.run(*arguments, "-resume", ok=False)
    assert refused.code != 0 and "Submitted process" not in refused.text
    assert "1 problem(s) found before the start, nothing was run" in refused.text
    told = "images/mosaic_DAPI_z0.tif has 13 bytes, it had 6; more is new. Give a new --outdir, or go on with --check_changed_raw false"
    assert told in refused.text
    assert json.loads((refused.outdir / "a" / "raw_files.json").read_text())["files"]["images/mosaic_DAPI_z0.tif"]["bytes"] == 6

    elsewhere = nextflow.run(*arguments, "-resume", outdir="other")
    assert {"PREFLIGHT", "CONVERT", "TILE"} <= set(tasks(elsewhere))
    nextflow.run(*arguments, "-resume", "--check_changed_raw", "false")
    assert {"CONVERT", "TILE"} <= set(tasks(nextflow.run(*arguments, "-resume"), "CACHED")), "the new files are the recorded ones now"


def test_a_sample_is_compared_as_soon_as_its_own_segmentations_are_there(nextflow):
    """A segmentation of sample b waits until a is compared, five minutes at most; one of c fails, so c is compared without it."""
    flag = nextflow.folder / "compared"
    path = f"export PATH={ROOT}/.venv/bin:\\$PATH; "
    waits = f"for i in {{1..300}}; do [ -e {flag} ] && break; sleep 1; done"
    fault = f"""process {{
        withName: 'ASSIGN' {{ beforeScript = {{
            "{path}" + (task.tag == 'b teacher' ? '{waits}' : task.tag == 'c vendor' ? 'mkdir() {{ exit 65; }}; export -f mkdir' : '')
        }} }}
        withName: 'COMPARE' {{ beforeScript = {{ "{path}" + (task.tag == 'a' ? 'touch {flag}' : '') }} }}
    }}\n"""
    (nextflow.folder / "faults.config").write_text(fault)
    # Little for each task: the one that waits must leave room for the others.
    small = ("--max_cpus", 1, "--max_memory", "1.GB", "--exports", "none")
    run = nextflow.run("-c", "faults.config", "--input", samples(nextflow, "a", "b", "c"), "-stub-run", *small, ok=False, timeout=600)
    started = {(row["process"], row["tag"]): datetime.fromisoformat(row["start"]) for row in run.trace() if row["status"] == "COMPLETED"}
    ended = {(row["process"], row["tag"]): datetime.fromisoformat(row["complete"]) for row in run.trace() if row["status"] == "COMPLETED"}
    last = ended["ASSIGN", "b teacher"]
    assert started["COMPARE", "a"] < last, "sample a waited for the segmentations of b"
    assert {("COMPARE", name) for name in "abc"} <= set(started)
    assert {name: json.loads((run.outdir / name / "comparison.json").read_text())["segmentations"] for name in "abc"} == {
        "a": ["istseg", "teacher", "vendor"], "b": ["istseg", "teacher", "vendor"], "c": ["istseg", "teacher"],
    }  # fmt: skip


def test_the_environment_must_be_that_of_the_pipeline(nextflow):
    """A process passes the version that it expects; another one fails at once."""
    (nextflow.folder / "other.config").write_text("manifest.version = '9.9.9'\n")
    run = nextflow.run("-c", "other.config", "--input", samples(nextflow, "a"), ok=False)
    assert run.code != 0
    assert "the pipeline is 9.9.9" in run.text


@pytest.mark.parametrize("parser", ["v1", "v2"])
def test_a_mail_and_a_program_of_the_user_at_the_end(nextflow, parser):
    """Nextflow's `-N`, by a stand-in for sendmail, and the hook of docs/usage.md run beside our own words."""
    page = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    (hook,) = re.findall(r"^```groovy\n(.*?)^```", page, re.M | re.S)
    told, mailed = nextflow.folder / "told.txt", nextflow.folder / "mail.txt"
    tell = program(nextflow.folder / "bin" / "tell", f'echo "$@" > {told}')
    program(nextflow.folder / "bin" / "sendmail", f"cat > {mailed}")
    (nextflow.folder / "mine.config").write_text(hook.replace("/usr/local/bin/tell", str(tell)), encoding="utf-8")
    run = nextflow.run(
        "-stub-run",
        "--input",
        samples(nextflow, "a"),
        "-c",
        "mine.config",
        "-N",
        "me@example.org",
        parser=parser,
        env={"PATH": f"{tell.parent}:{os.environ['PATH']}"},
    )
    name, word, report = told.read_text().split()
    assert word == "done" and (nextflow.folder / report).samefile(run.outdir / "report.html")
    assert f"Report: {run.outdir}/report.html" in run.text, "ours is said too"
    assert "To: me@example.org" in mailed.read_text() and name in mailed.read_text()
