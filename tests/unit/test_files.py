"""Whole files or none, and records that are read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from istseg.artifacts import files
from istseg.errors import InputError


def test_a_file_is_there_only_when_all_of_it_is(tmp_path):
    target = tmp_path / "a.json"
    with pytest.raises(ValueError, match="stop"), files.whole(target) as part:
        part.write_text("half")
        assert part.suffix == ".json" and files.final(part) == target
        raise ValueError("stop")
    assert os.listdir(tmp_path) == []
    with files.whole(target) as part:
        part.write_text("all")
    assert os.listdir(tmp_path) == ["a.json"]


def test_only_what_dead_processes_left_of_the_same_path_is_removed(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True).stdout.strip()
    others = [f".b.json.{dead}.part.json", f".a.json.{os.getppid()}.part.json", f".a.json.{dead}.part.csv", "a.json.1.part.json"]
    for name in (f".a.json.{dead}.part.json", *others):
        (tmp_path / name).touch()
    with files.scratch(tmp_path / "a.json"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(others)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "must be a JSON object, it is of the kind list"),
        ('{"a": ', "is not valid JSON"),
        ("\udcff", "is not valid JSON"),
        ('{"format": 0}', "format 0 is not 3"),
    ],
)
def test_what_is_no_record_is_told_with_what_it_should_be(tmp_path, text, said):
    path = tmp_path / "sample.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=said) as told:
        files.read_record(path, "convert", 3)
    assert str(path) in str(told.value) and "convert" in str(told.value)
