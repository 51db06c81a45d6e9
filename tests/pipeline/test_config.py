"""Configuration, schema, command line and documentation say the same."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import get_args

import pytest
import yaml

from conftest import ROOT
from istseg.cli import app, comparator_app
from istseg.comparators import METHODS, NAMES, PROGRAM

pytestmark = pytest.mark.pipeline

SCHEMA = json.loads((ROOT / "nextflow_schema.json").read_text())
RULES = {name: rule for group in SCHEMA["$defs"].values() for name, rule in group["properties"].items()}

# Parameter of the pipeline -> options of the commands that it sets, where the name is not the same.
OPTION_OF = {
    "tissue_transcripts": ("tile", "min_transcripts"),
    "train_batch_size": ("train", "batch_size"),
    "segment_batch_size": ("segment", "batch_size"),
    "base_model_sha256": ("segment", "model_sha256"),
}
NOT_OPTIONS = set(
    [
        "input",
        "outdir",
        "publish_dir_mode",
        "checksums",
        "tiles_per_task",
        "base_model",
        "finetune",
        "compare",
        "qc_thresholds",
        "exports",
        "gpu",
        "help",
        "validate_params",
    ]
)
NOT_OPTIONS |= {
    "check_orientation", "check_changed_raw", "max_cpus", "max_memory", "max_time", "task_minutes", "canary",
    "queue", "gpu_queue", "account", "qos", "gpu_type", "gpu_options", "cluster_options", "penv", "array_size",
    "aws_region", "google_project", "google_location", "azure_location", "k8s_claim", "k8s_namespace",
    "container_registry", "container_tag",
    "proseg_init", "baysor", "baysor_min_molecules", "coexpression", "genesegnet_weights",
}  # fmt: skip
WIRED = set(
    ["device", "patches", "formats", "name", "base", "base_sha256", "sample", "platform", "fovs", "segmentation", "raw", "out", "disk", "schema", "params"]
)
WIRED |= {"cells", "transcripts", "annotations", "annotations_unit", "method"}
"""Options that modules or conf/modules.config set from channels."""


@dataclass
class Option:
    default: object
    low: float | None
    high: float | None
    is_path: bool


def options_of_commands() -> dict[str, dict[str, Option]]:
    found = {}
    for command in [*app.registered_commands, *comparator_app.registered_commands]:
        options = found[command.callback.__name__] = {}
        for name, parameter in inspect.signature(command.callback, eval_str=True).parameters.items():
            kind, option = get_args(parameter.annotation)
            default = None if parameter.default is inspect.Parameter.empty else getattr(parameter.default, "value", parameter.default)
            options[name] = Option(default, option.min, option.max, "Path" in str(kind))
    # Commands beside the pipeline; it runs coexpression with the defaults.
    for name in ("simulate", "pretrain", "stress", "coexpression", "doctor", "samplesheet", "subset", "explain", "view", "schedule"):
        del found[name]
    return found


def test_defaults_of_config_and_schema_agree(nextflow_module):
    params = nextflow_module.config()["params"]
    assert set(params) == set(RULES), "nextflow.config and nextflow_schema.json name different parameters"
    for name, rule in RULES.items():
        default = rule.get("default")
        if isinstance(default, str):
            default = default.replace("${projectDir}", str(ROOT))
        assert params[name] == default, name


PROBE = """
process TRAIN {
    output:
    stdout

    script:
    "echo 'TRAIN ${task.ext.args} .'"
}

process SEGMENT {
    output:
    stdout

    script:
    "echo 'SEGMENT ${task.ext.args} .'"
}

workflow {
    TRAIN().mix(SEGMENT()).view()
}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {"--precision": "auto"}),
        (
            {"base_model": "scratch", "finetune": "cohort", "backbone": "swin", "rna_input": "learned", "epochs": 7, "patience": 0, "precision": "float32"},
            {"--backbone": "swin", "--rna-input": "learned", "--epochs": "7", "--patience": "0", "--precision": "float32"},
        ),
    ],
)
def test_options_without_a_default_are_passed_only_when_given(nextflow, given, options):
    (nextflow.folder / "probe.nf").write_text(PROBE)
    done = nextflow.call("run", "probe.nf", "-c", ROOT / "nextflow.config", *(word for name, value in given.items() for word in (f"--{name}", value)))
    assert done.returncode == 0, done.stdout
    words = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith(("TRAIN ", "SEGMENT "))}
    train = dict(zip(words["TRAIN"][1:-1:2], words["TRAIN"][2:-1:2], strict=True))
    assert {name: value for name, value in train.items() if name in ("--backbone", "--rna-input", "--epochs", "--patience", "--precision")} == options
    assert words["SEGMENT"][-3:-1] == ["--precision", options["--precision"]]


def test_names_of_compare_are_those_of_the_registry():
    assert tuple(RULES["compare"]["items"]["enum"]) == NAMES
    assert all(name in RULES["compare"]["description"] for name in NAMES)


def test_schema_is_closed_and_every_parameter_explains_itself():
    assert SCHEMA["unevaluatedProperties"] is False
    assert {ref["$ref"].rpartition("/")[2] for ref in SCHEMA["allOf"]} == set(SCHEMA["$defs"])
    for name, rule in RULES.items():
        assert rule["type"] in ("string", "number", "integer", "boolean"), name
        assert len(rule["description"]) > 10, name
        unit = re.search(r"_um2?$|_wpx$", name)
        if unit:
            word = {"_um": "µm", "_um2": "µm²", "_wpx": "working pixels"}[unit.group()]
            assert word in rule["description"], f"{name}: its description lacks its unit"


def test_parameters_and_options_of_the_commands_agree():
    commands = options_of_commands()
    for name, rule in RULES.items():
        if name in NOT_OPTIONS:
            continue
        where = OPTION_OF.get(name)
        named = [options[name] for options in commands.values() if name in options and options[name].is_path == ("format" in rule)]
        found = [commands[where[0]][where[1]]] if where else named
        assert found, f"{name}: no command has such an option"
        for option in found:
            assert option.default == rule.get("default"), f"{name}: the command's default is {option.default}"
            assert option.low is None or rule["minimum"] >= option.low, name
            assert option.high is None or rule["maximum"] <= option.high, name


def test_every_option_of_the_commands_can_be_set_or_is_an_artifact():
    named = set(RULES) | {option for _, option in OPTION_OF.values()}
    for command, options in options_of_commands().items():
        for name, option in options.items():
            assert name in named | WIRED or option.is_path, f"istseg {command} --{name} cannot be set by a parameter"


def test_lint_is_clean():
    done = subprocess.run([ROOT / "bin" / "lint_nextflow"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint_finds_a_broken_module(tmp_path):
    for name in ("main.nf", "nextflow.config", "workflows", "modules", "conf", "bin", "nextflow_schema.json"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    (tmp_path / ".istseg").mkdir()
    for name in ("nextflow", "nextflow.path"):
        if (ROOT / ".istseg" / name).exists():
            (tmp_path / ".istseg" / name).symlink_to(ROOT / ".istseg" / name)
    broken = tmp_path / "modules" / "merge" / "main.nf"
    broken.write_text(broken.read_text().replace("path(thresholds", "path(limits"))
    command = [tmp_path / "bin" / "lint_nextflow", "modules/teach/main.nf", "modules/merge/main.nf"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    assert "thresholds` is not defined" in done.stderr


def test_every_module_is_complete():
    stages = {path.stem for path in (ROOT / "src" / "istseg" / "stages").glob("[a-z]*.py")} - {"simulate", "pretrain", "stress"}
    commands = {stage: stage for stage in stages - {"comparator"}} | {
        f"comparator_{c.name}": f"comparator {c.name}" for c in comparator_app.registered_commands
    }
    programs = {method.name: None for method in METHODS.values() if method.kind == PROGRAM}
    assert {path.name for path in (ROOT / "modules").iterdir()} == {*commands, *programs, "canary"}
    for stage, command in {**commands, **programs}.items():
        text = (ROOT / "modules" / stage / "main.nf").read_text()
        assert text.startswith(f"/*\n * {stage.upper()}: ")
        call = f"istseg --expect-version ${{workflow.manifest.version}} {command} " if command else stage
        for part in (" * in   ", " * out  ", "tag ", "label ", "stub:", call, "task.ext.args"):
            assert part in text, f"{stage}: lacks {part}"
        assert stage == "report" or "topic: versions" in text
        assert stage in ("preflight", "report") or "    ext size: { meta.size }" in text, f"{stage}: cannot ask for memory by its sample"
        assert "container " not in text, f"{stage}: images are named in conf/site.config"
        assert yaml.safe_load((ROOT / "modules" / stage / "meta.yml").read_text())["name"] == stage


def test_processes_with_a_gpu_are_those_of_the_label():
    told = re.search(r"def gpu_processes\(\) \{\s*return \[(.*?)\]", (ROOT / "workflows" / "summary.nf").read_text())[1]
    processes = [block for path in ROOT.glob("modules/*/main.nf") for block in re.split(r"^process ", path.read_text(), flags=re.M)[1:]]
    labelled = {block.split()[0] for block in processes if "label 'process_gpu'" in block}
    assert set(re.findall(r"'(\w+)'", told)) == labelled - {"CANARY_GPU"}
    for name in ("site", "cluster", "gpu"):
        limited = re.search(r"withName: '([A-Z_|]+)' \{\s*(//.*\s*)?maxForks", (ROOT / "conf" / f"{name}.config").read_text())[1]
        assert set(limited.split("|")) == labelled, f"conf/{name}.config"


def test_parameter_tables_of_the_docs_are_those_of_the_schema():
    done = subprocess.run([sys.executable, ROOT / "bin" / "docs_params", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
