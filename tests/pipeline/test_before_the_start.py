"""Wrong parameters and samplesheets: all problems at once, before any task, in plain words."""

from __future__ import annotations

import time

import pytest
import torch

from conftest import ROOT, Nextflow

pytestmark = pytest.mark.pipeline


def problems_of(nextflow: Nextflow, *args: object) -> str:
    start = time.monotonic()
    run = nextflow.run(*args, ok=False)
    assert run.code != 0
    assert "nothing was run" in run.text, run.text
    assert "Submitted process" not in run.text
    assert "Exception" not in run.text
    assert "at groovy" not in run.text
    assert time.monotonic() - start < 60, "slow even for a machine that does other things"
    return run.text


BAD_PARAMETERS = [
    ("--tile_umm", "300", "--tile_umm: there is no such parameter; did you mean --tile_um?"),
    ("--tile-um", "300", "--tile-um: there is no such parameter; did you mean --tile_um?"),
    ("--teachr", "vendor", "--teachr: there is no such parameter; did you mean --teacher?"),
    ("--xyzzy", "1", "--xyzzy: there is no such parameter; --help lists them."),
    ("--working_um", "3", "--working_um: must be between 0.05 and 2, it is 3."),
    ("--overlap_um", "wide", "--overlap_um: must be a number, it is 'wide'."),
    ("--tiles_per_task", "1.5", "--tiles_per_task: must be a whole number, it is '1.5'."),
    ("--seed", "-1", "--seed: must be between 0 and 2147483647, it is -1."),
    ("--finetune", "samples", "--finetune: 'samples' is none of none, sample, cohort; did you mean sample?"),
    ("--teacher", "cellpos", "--teacher: 'cellpos' is none of watershed, cellpose, vendor; did you mean cellpose?"),
    ("--z_planes", "1-", "--z_planes: '1-' is not of the right form."),
    ("--membrane_stains", "a'b", "--membrane_stains: 'a'b' is not of the right form."),
    ("--nuclei_sha256", "abc", "--nuclei_sha256: 'abc' is not of the right form."),
    ("--base_model", "/no/such.safetensors", "--base_model: there is no file '/no/such.safetensors'."),
    ("--qc_thresholds", "no.yaml", "no.yaml'."),
    ("--exports", "xenium", "--exports: 'xenium' is not of the right form."),
    ("--max_memory", "much", "--max_memory: 'much' is not of the right form."),
    ("--compare", "vendor,protseg", "comseg, baysor; did you mean proseg?"),
    ("--container_tag", "a b", "--container_tag: 'a b' is not of the right form."),
    ("--backbone", "swin", "--backbone: only an untrained network takes it, weights bring their own; leave it out or use --base_model scratch."),
    ("--precision", "half", "--precision: 'half' is none of auto, bf16, float32"),
    ("--input", "missing.csv", "--input: there is no file "),
]


def test_all_wrong_parameters_are_told_at_once(nextflow):
    text = problems_of(nextflow, *(word for name, value, _ in BAD_PARAMETERS for word in (name, value)))
    for _, _, message in BAD_PARAMETERS:
        assert message in text, text
    assert f"{len(BAD_PARAMETERS)} problem(s)" in text, text


def test_weights_that_learn_nothing_keep_their_rna_input(nextflow):
    text = problems_of(nextflow, "--rna_input", "learned")
    assert "--rna_input: weights bring their own; leave it out, or add --finetune" in text


def test_parameters_of_a_file_keep_their_types(nextflow):
    (nextflow.folder / "p.yaml").write_text(
        "tile_um: '750'\nepochs: 2.5\nteacher: cellpose\nbase_model: scratch\nz_planes: 3\nunknown: {a: 1}\ncompare: 'vendor,,proseg,'\n"
    )
    text = problems_of(nextflow, "-params-file", "p.yaml")
    assert "--tile_um: must be a number, it is '750'." in text
    assert "--epochs: must be a whole number, it is '2.5'." in text
    assert "--nuclei_weights: the teacher cellpose needs it" in text
    assert "--cyto_weights: the teacher cellpose needs it" in text
    assert "--base_model: `scratch` is an untrained network" in text
    assert "--unknown: there is no such parameter" in text
    assert "--input: is missing." in text
    assert "--compare: 'vendor,,proseg,' has an empty name; write names with one comma between them." in text
    assert "--z_planes" not in text  # a plane given as a number is fine


SHEETS = {
    "empty": (b"", "is empty; it needs the header"),
    "only_header": (b"sample,platform,path\n\n", "has a header but no sample"),
    "semicolons": (b"sample;platform;path\na;merscope;raw\n", "separated by semicolons; save it with commas"),
    "tabs": (b"sample\tplatform\tpath\na\tmerscope\traw\n", "separated by tabs"),
    "latin1": ("sample,platform,path\na,merscope,Grö\n".encode("latin-1"), "is not text in UTF-8"),
    "binary": (b"PK\x03\x04\x00\x00\x00", "is not text in UTF-8"),
    "columns": (b"sampel,platform,path,path,colour\na,merscope,raw,raw,red\n", "there is no column 'sampel'; did you mean sample?"),
}


@pytest.mark.parametrize("name", SHEETS)
def test_broken_samplesheet(nextflow, name):
    content, message = SHEETS[name]
    (nextflow.folder / "raw").mkdir()
    (nextflow.folder / "s.csv").write_bytes(content)
    text = problems_of(nextflow, "--input", "s.csv")
    assert message in text
    if name == "columns":
        assert "there is no column 'colour'; columns are sample, platform" in text
        assert "lacks the column sample." in text
        assert "has the column 'path' 2 times" in text


EVIL_NAMES = ("../up", "..", "a/../../up", "$(touch pwned)", "`touch pwned`", "a;touch pwned", "a'b", "-x", "a|b", "<b>", ".hidden")


def test_wrong_rows_are_told_with_their_lines(nextflow):
    (nextflow.folder / "raw").mkdir()
    (nextflow.folder / "file").touch()
    sheet = nextflow.samplesheet(
        "good,merscope,raw,,",
        "a b,merscope,raw,,",
        "cohort,merscope,raw,,",
        "x,visium,raw,,",
        "y,cosmx,nowhere,,",
        "z,cosmx,file,,",
        "Good,cosmx,raw,,",
        ",cosmx,raw,,",
        "p,cosmx,raw,0.12x,",
        "q,cosmx,raw,9,",
        "r,cosmx,raw,,1-",
        "s,cosmx,raw,,1-3,7",
        *(f'"{name}",merscope,raw,,' for name in EVIL_NAMES),
        header="sample,platform,path,pixel_size_um,fovs",
    )
    text = problems_of(nextflow, "--input", sheet)
    for message in (
        "line 3, sample: 'a b' is not of the right form.",
        "line 4, sample: 'cohort' is not of the right form.",
        "line 5, platform: 'visium' is none of merscope, cosmx",
        f"line 6, path: there is no folder '{nextflow.folder}/nowhere'.",
        "line 7, path: '" + f"{nextflow.folder}/file' is a file, a folder is needed.",
        "lines 2, 8: the sample name 'good' is there 2 times",
        "line 9: has no sample.",
        "line 10, pixel_size_um: must be a number, it is '0.12x'.",
        "line 11, pixel_size_um: must be between 0.01 and 5, it is 9.",
        "line 12, fovs: '1-' is not of the right form.",
        "line 13: has 6 values, the header has 5 columns",
    ):
        assert message in text, text
    for number, name in enumerate(EVIL_NAMES, 14):
        assert f"line {number}, sample: '{name}' is not of the right form." in text, text
    assert "line 2," not in text
    assert not (nextflow.folder.parent / "up").exists() and not list(nextflow.folder.rglob("pwned"))


def test_help_lists_every_parameter_by_group(nextflow):
    import json

    done = nextflow.run("--help")
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    for group in schema["$defs"].values():
        assert group["title"] in done.text
        for name in group["properties"]:
            assert f"--{name} " in done.text
    assert "Submitted process" not in done.text


def test_checks_work_with_the_strict_parser_too(nextflow):
    run = nextflow.run("--tile_umm", "3", "--input", "missing.csv", parser="v2", ok=False)
    assert run.code != 0
    assert "did you mean --tile_um?" in run.text
    assert "--input: there is no file" in run.text


def test_a_raw_folder_without_data_ends_the_run_with_plain_words(nextflow):
    (nextflow.folder / "raw 1 'ü").mkdir()
    sheet = nextflow.samplesheet("a,merscope,raw 1 'ü", "b,cosmx,raw 1 'ü")
    baysor = nextflow.folder / "bay's or"
    baysor.touch(mode=0o755)
    wrong = ("--iou_thresholds", "0.0,0.5", "--gpu")
    run = nextflow.run("--input", sheet, "--compare", "vendor,baysor", "--baysor", baysor.name, *wrong, ok=False)
    assert run.code != 0
    assert "Nothing was run: preflight found problems." in run.text
    assert {row["process"] for row in run.trace()} == {"PREFLIGHT"}
    told = run.text.split("Nothing was run")[1]
    assert " a: " in told, told
    assert " b: " in told, told
    assert "--iou_thresholds: '0.0,0.5'" in told, told
    assert torch.cuda.is_available() or "sees no GPU here" in told, "never a silent fall-back to the CPU"
    assert "--baysor" not in told, "a path from where Nextflow was started"
    assert "Traceback" not in told
    assert not (run.outdir / "report.html").exists()
