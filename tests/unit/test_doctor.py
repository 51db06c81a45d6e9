"""doctor: what is missing is told, with what to do, and decides the exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from istseg import doctor
from istseg.doctor import BAD, NOTE, OK, Check

(SHIPPED, FILE), *_ = ((entry["name"], entry["file"]) for entry in json.loads((ROOT / "assets" / "weights.json").read_text())["weights"] if entry["shipped"])


def found(**options) -> dict[str, Check]:
    return {check.name: check for check in doctor.examine(**options)}


def test_this_environment_is_well():
    checks = found(disk=ROOT, min_disk_gb=0)
    assert [c.name for c in checks.values() if c.state == BAD] == []
    assert torch.__version__.startswith(checks["torch"].found)
    assert checks[SHIPPED].state == OK
    assert "precision" in checks["device cpu"].found


def test_damaged_and_missing_weights_are_told_by_checksum(tmp_path):
    shutil.copytree(ROOT / "assets" / "models", tmp_path / "models")
    shutil.copy(ROOT / "assets" / "weights.json", tmp_path)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert found(assets=tmp_path)[SHIPPED].state == BAD
    path.unlink()
    assert found(assets=tmp_path)[SHIPPED] == Check(SHIPPED, BAD, f"there is no {path}", "Get the pipeline again.")


def test_an_image_has_no_weights_and_that_is_no_fault(tmp_path):
    assert found(assets=tmp_path)["weights"].state == NOTE


def test_weights_of_the_user_are_told_with_their_checksum(tmp_path):
    (tmp_path / "cyto3").write_bytes(b"abc")
    checks = found(weights=[tmp_path / "cyto3", tmp_path / "nuclei"])
    assert checks["cyto3"].found == "sha256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checks["nuclei"].state == BAD


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    check = found(device="cuda")["device cuda"]
    assert check.state == BAD and "--device cpu" in check.found


def test_too_little_room(tmp_path):
    check = found(disk=tmp_path, min_disk_gb=1e9)["disk"]
    assert check.state == BAD and "are needed" in check.advice
    assert found(disk=tmp_path / "nowhere")["disk"].state == BAD


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "numba"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    checks = found()
    assert checks["NUMBA_CACHE_DIR"].state == BAD
    assert checks["MPLCONFIGDIR"].state == OK


def test_programs_that_are_not_there_are_a_note_and_ps_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = found(programs=tmp_path)
    assert checks["ps"].state == BAD
    assert checks["java"].state == NOTE


def test_comparators_are_optional_and_it_is_told_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = found(programs=tmp_path)
    for name, advice in (("proseg", "bin/setup_comparators proseg"), ("comseg", "bin/setup_comparators comseg"), ("baysor", "Nothing here installs it")):
        check = checks[f"comparator {name}"]
        assert check.state == OK and f"optional, for --compare {name} only" in check.found
        assert advice in check.advice
    for path in ("proseg/bin/proseg", "baysor"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch(mode=0o755)
    checks = found(programs=tmp_path)
    assert checks["comparator proseg"].advice == "" and "--baysor" in checks["comparator baysor"].found


@pytest.mark.parametrize(("least", "code"), [(0, 0), (1e9, 1)])
def test_command_prints_a_table_or_json_and_its_status_says_whether_all_is_well(tmp_path, least, code):
    istseg = Path(sys.executable).with_name("istseg")
    command = [istseg, "doctor", "--disk", tmp_path, "--min-disk-gb", str(least)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == code, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] == (code == 0)
    disk = next(check for check in told["checks"] if check["name"] == "disk")
    assert disk["state"] == ("ok" if code == 0 else "not ok")
    if code:
        table = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        assert table.returncode == 1
        assert "make room" in " ".join(table.stdout.split())
