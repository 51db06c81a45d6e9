"""Profiles of sites: what each resolves to, and what schedulers are asked for in the end."""

from __future__ import annotations

import csv
import os
import re

import pytest

from conftest import ROOT, Nextflow
from istseg import __version__

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

CLUSTER = {"params.max_cpus": 64, "params.max_memory": "500.GB", "executor.queueSize": 200, "executor.submitRateLimit": "20/1min", "max_forks": 0}
WRITABLE = {"env.MPLCONFIGDIR": ".cache/matplotlib", "env.NUMBA_CACHE_DIR": ".cache/numba", "env.XDG_CACHE_HOME": ".cache"}
DOCKER = {**WRITABLE, "docker.enabled": True, "docker.runOptions": "--no-healthcheck -u $(id -u):$(id -g)"}
APPTAINER = {**WRITABLE, "apptainer.enabled": True, "apptainer.autoMounts": True}
SINGULARITY = {**WRITABLE, "singularity.enabled": True, "singularity.autoMounts": True}
USER = "--no-healthcheck $([ $(id -u) = 0 ] || echo --userns=keep-id) -u $(id -u):$(id -g)"
CUT_OFF = "--pull=never --network=none"
DEMO = {"params.input": f"{ROOT}/assets/demo/samplesheet.csv", "params.max_cpus": 1, "params.max_memory": "6.GB"}
GPU = {"params.gpu": True}
USUAL = {
    "process.executor": None, "params.gpu": False, "params.max_cpus": None, "params.max_memory": None, "params.max_time": "240.h", "params.outdir": "results",
    "params.container_tag": __version__, "params.container_registry": "localhost", "params.finetune": "none", "params.canary": False, "max_forks": 0,
}  # fmt: skip
"""What is there where a profile does not say otherwise."""
PROFILES = {
    "standard": {"process.executor": "local"},
    "slurm,apptainer,gpu": {**CLUSTER, **APPTAINER, **GPU, "process.executor": "slurm"},
    "lsf,singularity,arm": {**CLUSTER, **SINGULARITY, "process.executor": "lsf", "params.container_tag": f"{__version__}-arm64"},
    "sge,gpu": {**CLUSTER, **GPU, "process.executor": "sge"},
    "pbspro,podman,offline,demo": {
        **CLUSTER, **WRITABLE, **DEMO, "process.executor": "pbspro", "podman.enabled": True, "podman.runOptions": f"{CUT_OFF} {USER}",
        "docker.runOptions": f"{CUT_OFF} --no-healthcheck -u $(id -u):$(id -g)", "env.HF_HUB_OFFLINE": "1", "params.outdir": "results/demo",
    },
    "awsbatch,docker,gpu,canary": {
        **CLUSTER, **DOCKER, **GPU, "process.executor": "awsbatch", "aws.region": None, "params.canary": True, "params.outdir": "results/canary",
    },
    "google-batch": {**CLUSTER, **DOCKER, "process.executor": "google-batch", "google.project": None, "google.location": None},
    "azurebatch": {**CLUSTER, **DOCKER, "process.executor": "azurebatch", "azure.batch.location": None},
    "k8s": {**CLUSTER, **DOCKER, "process.executor": "k8s", "k8s.storageMountPath": "/workspace", "k8s.storageClaimName": None, "k8s.namespace": None},
    "gpu,podman,test": {
        **WRITABLE, **DEMO, **GPU, "max_forks": 1, "podman.enabled": True, "podman.runOptions": USER, "params.tile_um": 90.0, "params.outdir": "results/test",
    },
    "test_full": {**DEMO, "params.finetune": "cohort", "params.compare": "vendor,teacher,expansion,genesegnet", "params.outdir": "results/test_full"},
}  # fmt: skip
"""Profiles, together where that is how they are used -> fields in the resolved configuration."""
EVERYWHERE = ("params", "process", "manifest", "workflow", "trace", "timeline", "report", "dag")


def test_every_profile_of_the_configuration_is_checked_here():
    block = re.search(r"^profiles \{\n(.*?)^\}", (ROOT / "nextflow.config").read_text(), re.M | re.S).group(1)
    assert {line.split()[0].strip("'") for line in block.splitlines()} == {name for names in PROFILES for name in names.split(",")}


@pytest.mark.parametrize("names", PROFILES)
def test_profile_resolves_field_by_field(nextflow_module, names):
    config = nextflow_module.config(names)
    process = config["process"]
    (forks,) = (block["maxForks"] for name, block in process.items() if name.startswith("withName:PREFLIGHT|TEACH"))
    found = {**dict(flat(config)), "max_forks": forks}
    expected = {**USUAL, **PROFILES[names]}
    assert {field: found.get(field) for field in expected} == expected
    # Nothing more: no setting of an engine or a cloud that was not asked for.
    assert {field for field in found if field.split(".")[0] not in (*EVERYWHERE, "max_forks")} <= set(expected)
    # A block of a profile must not take away what another file says of the same tasks, nor `ext` run out of its block.
    assert {"beforeScript", "resourceLimits", "errorStrategy", "memory", "time", "container", "containerOptions", "clusterOptions", "queue"} <= set(process)
    assert {"accelerator", "ext"} <= set(process["withLabel:process_gpu"])
    assert {"args", "memory", "seconds"} <= set(process["withName:SEGMENT"]["ext"])
    assert "ext" not in process
    assert config["manifest"]["version"] == __version__


def flat(config: dict, prefix: str = ""):
    """Fields of nested maps with their paths."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# The same tasks for each scheduler: one with a GPU, one without.
PROBE = """
include { GPU as slurm_gpu ; GPU as lsf_gpu ; GPU as sge_gpu ; GPU as pbspro_gpu } from './tasks'
include { PLAIN as slurm_plain ; PLAIN as lsf_plain ; PLAIN as sge_plain ; PLAIN as pbspro_plain } from './tasks'

workflow {
    size = channel.value([tile_mpx: 40.0, mpx: 8000])
    slurm_gpu(size); lsf_gpu(size); sge_gpu(size); pbspro_gpu(size)
    slurm_plain(size); lsf_plain(size); sge_plain(size); pbspro_plain(size)
}
"""
TASKS = """
process GPU {
    label 'process_gpu'
    ext size: { size }, tiles: { 10 }

    input:
    val size

    script:
    "true"
}

process PLAIN {
    label 'process_medium'
    ext size: { size }

    input:
    val size

    script:
    "true"
}
"""
EXECUTORS = """
executor { pollInterval = '1s'; submitRateLimit = null }
process {
    withName: 'slurm_.*' { executor = 'slurm' }
    withName: 'lsf_.*' { executor = 'lsf' }
    withName: 'sge_.*' { executor = 'sge' }
    withName: 'pbspro_.*' { executor = 'pbspro' }
    withName: '.*_gpu' { ext.memory = [start: 1000, tile_mpx: 50]; ext.seconds = [start: 60, tile_mpx: 3] }
    withName: '.*_plain' { ext.memory = [start: 1000, mpx: 1]; ext.seconds = [start: 60, mpx: 0.1] }
}
"""
# What stands for a scheduler: it takes a job, runs it at once and gives it a number.
SUBMIT = {
    "sbatch": 'bash "${@: -1}" >/dev/null 2>&1; echo Submitted batch job 1',
    "bsub": "bash >/dev/null 2>&1; echo 'Job <1> is submitted to queue <q>.'",
    "qsub": 'for last; do :; done; if [ -f "$last" ]; then bash "$last" >/dev/null 2>&1; else bash >/dev/null 2>&1; fi; echo 1',
}
# Memory: 500 MB + 1.5 times the estimate. Time: 30 min + 4 times the estimate (GPU: ten tiles).
ASKED = {
    "slurm": {
        "gpu": ["-p fast", "-c 4", "--gres=gpu:a100:1", "--account=lab", "--qos=night", "-W group=x", "--mem 5000M", "-t 01:54:00"],
        "plain": ["-p slow", "--account=lab", "--qos=night", "-W group=x", "-c 4", "--mem 14000M", "-t 01:27:20"],
    },
    "lsf": {"gpu": ["-q fast", "-n 4", "-gpu num=1:gmodel=a100", "-P lab", "-W group=x"], "plain": ["-q slow", "-P lab", "-n 4"]},
    "sge": {"gpu": ["-q fast", "-l gpu=1", "-P lab", "-pe orte 4"], "plain": ["-q slow", "-P lab", "-pe orte 4"]},
    "pbspro": {"gpu": ["-q fast", "-l select=1:ncpus=4:mem=5000mb:ngpus=1:gpu_type=a100", "-A lab"], "plain": ["-q slow", "-A lab", "ncpus=4:mem=14000mb"]},
}


@pytest.mark.skipif(os.path.exists("/etc/slurm/slurm.conf"), reason="a real scheduler is configured here")
def test_what_schedulers_are_asked_for(nextflow):
    """The lines at the head of each job's script, written by the real Nextflow."""
    for name, text in {"probe.nf": PROBE, "tasks.nf": TASKS, "executors.config": EXECUTORS}.items():
        (nextflow.folder / name).write_text(text)
    (nextflow.folder / "bin").mkdir()
    for name, text in SUBMIT.items():
        path = nextflow.folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    given = {"queue": "slow", "gpu_queue": "fast", "account": "lab", "qos": "night", "gpu_type": "a100", "cluster_options": "-W group=x", "penv": "orte"}
    own = {"max_cpus": 8, "max_memory": "64.GB", "gpu": "true"}
    arguments = [f"--{name}={value}" for name, value in {**given, **own}.items()]
    path = f"{nextflow.folder / 'bin'}:{os.environ['PATH']}"
    done = nextflow.call("run", "probe.nf", "-c", ROOT / "nextflow.config", "-c", "executors.config", *arguments, env={"PATH": path})
    assert done.returncode == 0, done.stdout
    jobs = {}
    for script in (nextflow.folder / "work").glob("*/*/.command.run"):
        text = script.read_text()
        name = re.search(r"(slurm|lsf|sge|pbspro)_(gpu|plain)", text)
        jobs[name.groups()] = "\n".join(line for line in text.splitlines() if re.match(r"#(SBATCH|BSUB|\$|PBS) ", line))
    assert len(jobs) == 8
    for executor, tasks in ASKED.items():
        for task, options in tasks.items():
            for option in options:
                assert option in jobs[executor, task], jobs[executor, task]
        assert "gpu" not in jobs[executor, "plain"].replace("_gpu", "")


# Each task is ended so many times by the status that it is given, then succeeds.
ENDED = """
process TASK {
    tag "$code"

    input:
    tuple val(code), val(times)

    script:
    "exit ${task.attempt <= times ? code : 0}"
}
workflow { TASK(channel.of([1, 1], [65, 1], [130, 1], [137, 2], [140, 2], [143, 1], [247, 3])) }
"""
# The estimates less their margins: 100 MB, 100 s.
ESTIMATES = """
trace { fields = 'tag,attempt,exit,memory,time,status'; raw = true }
process { withName: 'TASK' { ext.memory = [start: -800 / 3]; ext.seconds = [start: -425] } }
"""


def test_what_ended_a_task_says_what_it_asks_for_next(nextflow):
    """Real tasks; never more than `--max_memory` and `--max_time`, and no third retry."""
    (nextflow.folder / "main.nf").write_text(ENDED)
    (nextflow.folder / "estimates.config").write_text(ESTIMATES)
    limits = ("--max_memory", "300.MB", "--max_time", "300.s", "--outdir", "out")
    done = nextflow.call("run", "main.nf", "-c", ROOT / "nextflow.config", "-c", "estimates.config", *limits, timeout=580)
    with open(nextflow.folder / "out" / "pipeline_info" / "trace.tsv", newline="") as stream:
        rows = sorted(csv.DictReader(stream, delimiter="\t"), key=lambda row: (int(row["tag"]), int(row["attempt"])))
    asked = {}
    for row in rows:
        asked.setdefault(int(row["tag"]), []).append((int(row["memory"]) // 2**20, int(row["time"]) // 1000, int(row["exit"])))
    assert asked == {
        1: [(100, 100, 1)],
        65: [(100, 100, 65)],
        130: [(100, 100, 130), (100, 100, 0)],
        137: [(100, 100, 137), (200, 100, 137), (300, 100, 0)],
        140: [(100, 100, 140), (100, 200, 140), (100, 300, 0)],
        143: [(100, 100, 143), (100, 200, 0)],
        247: [(100, 100, 247), (200, 100, 247), (300, 100, 247)],
    }
    assert done.returncode != 0, "three tasks failed for good"


# What the configuration says, asked by a script.
ASKS = """
include { tiles_of_a_task } from '%s/workflows/batches'

workflow {
    size = [tile_mpx: 2.0, tile_mtx: 0.1]
    tiles = [0.01, 1, 10].collect { minutes -> tiles_of_a_task(size, minutes) }
    println "tiles: ${tiles}"
    options = nextflow.Global.session.config.process.containerOptions.clone()
    options.resolveStrategy = Closure.DELEGATE_FIRST
    gpu = [docker: 'local', podman: 'slurm', apptainer: 'slurm', singularity: 'lsf', k8s: 'k8s', none: 'local'].collect { engine, executor ->
        task = [accelerator: engine == 'none' ? null : 1, executor: executor]
        options.delegate = [task: task, workflow: [containerEngine: engine in ['k8s', 'none'] ? 'docker' : engine]]
        options.call()
    }
    println "gpu: ${gpu}"
}
"""


def test_tiles_of_a_task_and_how_engines_let_a_gpu_in(nextflow):
    """Segment is the slower: 1.04 s for each of two million pixels. Kubernetes needs no option, nor does a task without a GPU."""
    (nextflow.folder / "main.nf").write_text(ASKS % ROOT)
    done = nextflow.call("run", "main.nf", "-c", ROOT / "nextflow.config", "--outdir", "out")
    assert "tiles: [1, 29, 288]\n" in done.stdout, done.stdout
    assert "gpu: [--gpus all, --device nvidia.com/gpu=all, --nv, --nv, null, null]\n" in done.stdout, done.stdout


def test_what_does_not_fit_the_site_is_told_before_the_start(nextflow: Nextflow):
    run = nextflow.run("-profile", "demo,docker", "--qos", "night", "--array_size", 10, "--container_registry", "/images", ok=False)
    assert run.code != 0
    assert "nothing was run" in run.text, run.text
    for problem in (
        "--qos: the executor local does not understand it (slurm do)",
        "--array_size: the executor local does not understand it",
        "/images is a folder with image files, which only apptainer and singularity take; docker needs a registry.",
    ):
        assert problem in run.text, run.text


def test_a_job_that_no_scheduler_takes_ends_the_run(nextflow):
    """Nextflow would wait for ever for a task that is ignored before it started."""
    (nextflow.folder / "bin").mkdir()
    sbatch = nextflow.folder / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1\n")
    sbatch.chmod(0o755)
    (nextflow.folder / "site.config").write_text("executor { submitRateLimit = null; pollInterval = '1s' }\n")
    path = f"{nextflow.folder / 'bin'}:{os.environ['PATH']}"
    run = nextflow.run("-c", "site.config", "-profile", "demo,slurm", "--queue", "nowhere", "-stub-run", ok=False, env={"PATH": path}, timeout=200)
    assert run.code != 0
    assert "invalid partition specified: nowhere" in run.text


def test_canary_tells_what_a_site_cannot_do(nextflow):
    """One thing is broken on purpose: the folder for temporary files. All else must be well, and the run must fail for it."""
    (nextflow.folder / "site.config").write_text("process { withName: 'CANARY_SCRATCH' { beforeScript = 'export TMPDIR=/nowhere/tmp' } }\n")
    run = nextflow.run("-c", "site.config", "-profile", "canary", ok=False)
    assert run.code != 0
    table = run.text.split("What this site can do:")[1]
    told = {line[10:48].strip(): line[:8].strip() for line in table.splitlines() if line[2:8] in ("ok    ", "NOT OK")}
    assert {name for name, state in told.items() if state == "NOT OK"} == {"temporary files have room"}
    assert len(told) == 7
    assert "/nowhere/tmp cannot be written to" in table
    assert "-> Set TMPDIR" in table
    assert "attempt 2 asked for 3 GB" in table
    assert (run.outdir / "canary.txt").exists()


def test_canary_of_a_site_where_all_is_well(nextflow):
    run = nextflow.run("-profile", "canary")
    assert "All well: the pipeline can run here." in run.text
    assert "NOT OK" not in run.text
