"""`make setup`: one clear sentence where something is missing, nothing to do the second time, no jar with another checksum."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = pytest.mark.pipeline


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the set-up needs, with nothing set up."""
    folder = tmp_path / "check out"
    folder.mkdir()
    shutil.copytree(ROOT / "bin", folder / "bin")
    shutil.copytree(ROOT / "assets", folder / "assets", ignore=shutil.ignore_patterns("demo", "models"))
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def tools(folder: Path, *names: str, **fakes: str) -> str:
    """A PATH with only these commands of the machine, and scripts in the place of others."""
    path = folder / "tools"
    path.mkdir()
    for name in (*names, "bash", "sh", "env", "dirname", "readlink", "cat"):
        (path / name).symlink_to(shutil.which(name))
    for name, script in fakes.items():
        (path / name.replace("_", ".")).write_text(f"#!/bin/sh\n{script}\n")
        (path / name.replace("_", ".")).chmod(0o755)
    return str(path)


def setup(folder: Path, path: str, python: str = sys.executable) -> subprocess.CompletedProcess:
    environment = {"PATH": path, "HOME": str(folder)}
    return subprocess.run([python, folder / "bin" / "setup"], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_without_java(checkout):
    done = setup(checkout, tools(checkout))
    assert done.returncode == 1
    assert done.stderr.strip() == ("setup: no Java found (java): install Java 17 or newer (Debian, Ubuntu: apt-get install openjdk-17-jre-headless).")


def test_with_an_old_java(checkout):
    done = setup(checkout, tools(checkout, java="echo 'openjdk version \"1.8.0_292\"' >&2"))
    assert done.returncode == 1
    assert "Java 17 or newer is needed, java is 8" in done.stderr


def test_without_the_venv_module(checkout):
    """As on Debian without python3-venv: ensurepip cannot be imported."""
    blocked = checkout / "blocked"
    blocked.mkdir()
    (blocked / "ensurepip.py").write_text("raise ImportError('not there')\n")
    path = tools(checkout, java="echo 'openjdk version \"17.0.1\"' >&2")
    environment = {"PATH": path, "HOME": str(checkout), "PYTHONPATH": str(blocked)}
    done = subprocess.run([sys.executable, checkout / "bin" / "setup"], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_python(checkout):
    done = subprocess.run(["make", "-C", checkout, "setup", "PYTHON=python-not-there"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    assert "no python-not-there found; install Python 3.11 or 3.12" in done.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"python": "3.9"}, "setup: Python 3.9 is needed, for which the wheels in .istseg/wheels are, and only 3."),
        ({"platform": "linux-riscv64"}, "setup: the wheels in .istseg/wheels are for linux-riscv64, this is "),
        ({"locks": {"requirements.lock": "0", "bootstrap.lock": "0"}}, "setup: the wheels in .istseg/wheels are those of another requirements.lock: "),
    ],
)
def test_wheels_of_a_bundle_for_another_machine(checkout, given, words):
    """`make setup` with the wheels that fit: tests/pipeline/offline."""
    locks = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (checkout / "requirements.lock", checkout / "assets" / "bootstrap.lock")}
    about = {"python": sysconfig.get_python_version(), "platform": sysconfig.get_platform(), "locks": locks}
    (checkout / ".istseg" / "wheels").mkdir(parents=True)
    (checkout / ".istseg" / "wheels" / "wheels.json").write_text(json.dumps(about | given))
    done = setup(checkout, tools(checkout, java="echo 'openjdk version \"17.0.1\"' >&2"))
    assert done.returncode == 1
    assert words in done.stderr
    assert not (checkout / ".venv").exists()


def test_the_second_time_there_is_nothing_to_do():
    environment = {**os.environ, "PATH": os.environ["PATH"]}
    done = subprocess.run(["make", "-C", ROOT, "--no-print-directory", "setup"], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "setup: environment .venv: is there"
    assert done.stdout.splitlines()[-1] == "setup: done"
    assert len(done.stdout.splitlines()) == 3


def test_a_nextflow_on_path_is_taken_when_it_is_new_enough(checkout):
    path = tools(checkout, nextflow="echo '      version 25.10.1 build 1'")
    module = load(checkout / "bin" / "setup")
    module.STATE.mkdir()
    old = os.environ["PATH"]
    os.environ["PATH"] = path
    try:
        module.make_nextflow(sys.executable)
    finally:
        os.environ["PATH"] = old
    assert (module.STATE / "nextflow.path").read_text() == f"{path}/nextflow"
    done = subprocess.run([checkout / "bin" / "nextflow", "-version"], capture_output=True, text=True)
    assert "25.10.1" in done.stdout


def test_the_launcher_says_what_to_do_before_the_set_up(checkout):
    done = subprocess.run([checkout / "bin" / "nextflow", "-version"], capture_output=True, text=True)
    assert done.returncode == 127
    assert "not set up yet; run: make -C" in done.stderr


class Jar:
    """One artifact as the resolver gives it."""

    cached_path = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.downloads = 0

    def project(self, group, artifact):
        return self

    def at_version(self, version):
        return self

    def artifact(self):
        return self

    def resolve(self):
        self.downloads += 1
        self.path.write_bytes(b"content")
        return self.path


def test_a_jar_with_another_checksum_is_never_installed(tmp_path, monkeypatch):
    module = load(ROOT / "bin" / "install_nextflow.py")
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    jar = Jar(tmp_path / "cached.jar")
    with pytest.raises(RuntimeError, match="the lock says 0000"):
        module.fetch(jar, ("group", "tool", "1", "0" * 64), tmp_path)
    assert not (tmp_path / "tool-1.jar").exists()
    assert jar.downloads == module.ATTEMPTS
    module.fetch(jar, ("group", "tool", "1", hashlib.sha256(b"content").hexdigest()), tmp_path)
    assert (tmp_path / "tool-1.jar").read_bytes() == b"content"


def test_installed_jars_are_those_of_the_lock():
    folder = ROOT / ".istseg" / "nextflow"
    if not folder.exists():
        pytest.skip("this machine has a Nextflow of its own")
    module = load(ROOT / "bin" / "install_nextflow.py")
    assert module.is_installed(folder)
    for _, artifact, version, digest in module.read_lock():
        assert hashlib.sha256((folder / f"{artifact}-{version}.jar").read_bytes()).hexdigest() == digest
    assert len(list(folder.glob("*.jar"))) == len(module.read_lock())


def load(path: Path):
    loader = importlib.machinery.SourceFileLoader("loaded_" + path.stem, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def comparators(folder: Path, path: str, *names: str) -> subprocess.CompletedProcess:
    environment = {"PATH": path, "HOME": str(folder)}
    command = [sys.executable, folder / "bin" / "setup_comparators", *names]
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("fakes", "words"),
    [
        ({}, "setup: no cargo found, and proseg is compiled here: install Rust 1.88 or newer with rustup, or leave proseg out of --compare."),
        ({"cargo": "exit 1"}, "cargo --version` gives no version (run it to see why)"),
        ({"cargo": "echo cargo 1.70.0"}, "setup: cargo 1.70.0 is too old for proseg: install Rust 1.88 or newer"),
        ({"cargo": '[ "$1" = --version ] && echo cargo 1.95.0 || { echo no route to host; exit 101; }'}, "setup: compiling proseg failed"),
    ],
)
def test_proseg_needs_a_cargo_that_works(checkout, fakes, words):
    shutil.copytree(ROOT / "containers", checkout / "containers")
    done = comparators(checkout, tools(checkout, **fakes), "proseg")
    assert done.returncode == 1
    assert words in done.stderr
    assert not (checkout / ".istseg" / "comparators" / "proseg" / "stamp").exists()


def test_a_program_that_is_there_is_not_installed_again(checkout):
    shutil.copytree(ROOT / "containers", checkout / "containers")
    program = checkout / ".istseg" / "comparators" / "proseg" / "bin" / "proseg"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho proseg 3.2.0\n")
    program.chmod(0o755)
    version = checkout / "containers" / "proseg" / "version"
    (program.parents[1] / "stamp").write_text(hashlib.sha256(version.read_bytes()).hexdigest())
    path = tools(checkout)
    done = comparators(checkout, path, "proseg")
    assert (done.returncode, done.stdout) == (0, "setup: proseg: is there\n")
    version.write_text("3.9.9\n")
    assert "no cargo found" in comparators(checkout, path, "proseg").stderr, "another pin is another program"


def test_baysor_is_not_installed_here(checkout):
    done = comparators(checkout, tools(checkout), "baysor", "prosec")
    assert done.returncode == 1
    assert "no such program: baysor, prosec; there are proseg, comseg. Baysor is given by its path (--baysor)." in done.stderr
