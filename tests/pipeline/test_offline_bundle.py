"""`bin/make_offline_bundle` and `bin/verify_offline_bundle` on a small checkout, without images: what is damaged on the way is told, all at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT

FOLDER = "istseg-offline-0.1.0"


def call(program: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, program, *map(str, arguments)], capture_output=True, text=True)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A repository with the programs, a configuration and the real pinned Nextflow."""
    folder = tmp_path_factory.mktemp("bundle") / "check out"
    shutil.copytree(ROOT / "bin", folder / "bin", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "assets").mkdir()
    for name in ("assets/nextflow-25.04.4.lock", "nextflow.config", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "assets" / "link.lock").symlink_to("nextflow-25.04.4.lock")
    (folder / ".istseg").mkdir()
    (folder / ".istseg" / "nextflow").symlink_to((ROOT / ".istseg" / "nextflow").resolve())
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "all")
    return folder


@pytest.fixture(scope="module")
def bundle(checkout) -> Path:
    archive = checkout.parent / "bundle.tar"
    done = call(checkout / "bin" / "make_offline_bundle", archive, "--images", "none")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in checkout.parent.iterdir()) == ["bundle.tar", "check out"], "nothing temporary stays"
    return archive


@pytest.fixture
def unpacked(bundle, tmp_path) -> Path:
    """As the verifier tells the user to."""
    subprocess.run(["tar", "-xf", bundle, "-C", tmp_path], check=True)
    return tmp_path / FOLDER


def verify(place: Path) -> subprocess.CompletedProcess:
    return call(ROOT / "bin" / "verify_offline_bundle", place)


def test_a_whole_bundle_is_well_as_archive_and_unpacked(bundle, checkout, unpacked):
    for place in (bundle, unpacked):
        done = verify(place)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "all as they were made" in done.stdout
        assert "-profile demo,offline --outdir" in done.stdout
    assert json.loads((unpacked / "MANIFEST.json").read_text())["version"] == "0.1.0"
    assert (unpacked / "pipeline" / "assets" / "link.lock").read_bytes() == (checkout / "assets" / "nextflow-25.04.4.lock").read_bytes()
    version = subprocess.run([unpacked / "pipeline" / "bin" / "nextflow", "-version"], capture_output=True, text=True)
    assert "25.04.4" in version.stdout, version.stdout + version.stderr


def test_missing_and_changed_files_are_told_together(unpacked):
    (unpacked / "pipeline" / "nextflow.config").unlink()
    jar = next((unpacked / "pipeline" / ".istseg" / "nextflow").glob("*.jar"))
    content = bytearray(jar.read_bytes())
    content[len(content) // 2] ^= 1
    jar.write_bytes(content)
    done = verify(unpacked)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"pipeline/.istseg/nextflow/{jar.name}: changed", "pipeline/nextflow.config: missing"]
    assert "Next:" not in done.stdout


def test_a_changed_byte_in_the_archive_is_told(bundle, tmp_path):
    with tarfile.open(bundle) as tar:
        place = tar.getmember(f"{FOLDER}/pipeline/nextflow.config").offset_data
    damaged = tmp_path / "damaged.tar"
    content = bytearray(bundle.read_bytes())
    content[place + 10] ^= 1
    damaged.write_bytes(content)
    done = verify(damaged)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["pipeline/nextflow.config: changed"]


@pytest.mark.parametrize("part", [0.0, 0.00001, 0.5, 0.95])
def test_an_archive_that_was_cut_off_is_told(bundle, tmp_path, part):
    damaged = tmp_path / "cut.tar"
    damaged.write_bytes(bundle.read_bytes()[: int(bundle.stat().st_size * part)])
    done = verify(damaged)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Next:" not in done.stdout
    if part >= 0.5:
        assert "copy it again" in done.stdout
        assert ".jar: missing" in done.stdout


def test_what_is_no_bundle_is_told(tmp_path, bundle):
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as tar:
        tar.add(ROOT / "LICENSE", "LICENSE")
    for place, text in {
        other: "does not begin with SHA256SUMS",
        tmp_path: "no SHA256SUMS",
        tmp_path / "nothing": "there is no",
        ROOT / "LICENSE": "cannot be read",
    }.items():
        done = verify(place)
        assert done.returncode == 1
        assert text in done.stderr
        assert "Traceback" not in done.stderr


def test_an_archive_is_not_overwritten_without_force_and_is_the_same_again(checkout, bundle):
    make = checkout / "bin" / "make_offline_bundle"
    before = bundle.read_bytes()
    done = call(make, bundle, "--images", "none")
    assert done.returncode == 1
    assert "--force replaces it" in done.stderr
    bundle.write_bytes(b"something else")
    assert call(make, bundle, "--images", "none", "--force").returncode == 0
    assert bundle.read_bytes() == before


def test_changed_files_of_the_checkout_end_it(checkout, tmp_path):
    config = checkout / "nextflow.config"
    before = config.read_bytes()
    config.write_bytes(before + b"// changed\n")
    done = call(checkout / "bin" / "make_offline_bundle", tmp_path / "bundle.tar", "--images", "none")
    config.write_bytes(before)
    assert done.returncode == 1
    assert "1 tracked files differ from the commit (first: nextflow.config)" in done.stderr
    assert not any(tmp_path.iterdir())


def wheel(folder: Path, name: str) -> Path:
    """A package with nothing in it."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        stream.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: here\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        stream.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def index(checkout, tmp_path) -> Path:
    """Locks of one package each, and a folder in which pip finds both. (The real locks: tests/pipeline/offline.)"""
    if not (ROOT / ".istseg" / "bootstrap").is_dir():
        pytest.skip("there is no .istseg/bootstrap")
    folder = tmp_path / "index"
    folder.mkdir()
    if not (checkout / ".istseg" / "bootstrap").exists():
        (checkout / ".istseg" / "bootstrap").symlink_to((ROOT / ".istseg" / "bootstrap").resolve())
    for name, lock in (("one", "requirements.lock"), ("two", "assets/bootstrap.lock")):
        digest = hashlib.sha256(wheel(folder, name).read_bytes()).hexdigest()
        (checkout / lock).write_text(f"{name}==1.0 --hash=sha256:{digest}\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "locks")
    return folder


def with_wheels(checkout: Path, archive: Path, index: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, checkout / "bin" / "make_offline_bundle", archive, "--images", "none", "--wheels"]
    return subprocess.run(command, env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}, capture_output=True, text=True)


def test_wheels_lie_in_the_bundle_with_a_lock_of_their_own(checkout, index, tmp_path):
    done = with_wheels(checkout, tmp_path / "bundle.tar", index)
    assert done.returncode == 0, done.stderr
    assert "make -C pipeline setup" in verify(tmp_path / "bundle.tar").stdout
    subprocess.run(["tar", "-xf", tmp_path / "bundle.tar", "-C", tmp_path], check=True)
    wheels = tmp_path / FOLDER / "pipeline" / ".istseg" / "wheels"
    for name, lock in (("one", "requirements.lock"), ("two", "bootstrap.lock")):
        folder = wheels / lock.removesuffix(".lock")
        assert {path.name for path in folder.iterdir()} == {f"{name}-1.0-py3-none-any.whl", lock}
        digest = hashlib.sha256((folder / f"{name}-1.0-py3-none-any.whl").read_bytes()).hexdigest()
        assert (folder / lock).read_text() == f"{name}==1.0 --hash=sha256:{digest}\n"
    about = json.loads((wheels / "wheels.json").read_text())
    assert about["locks"]["requirements.lock"] == hashlib.sha256((checkout / "requirements.lock").read_bytes()).hexdigest()


def test_a_package_that_is_not_the_one_of_the_lock_is_not_taken(checkout, index, tmp_path):
    with zipfile.ZipFile(index / "one-1.0-py3-none-any.whl", "a") as stream:
        stream.writestr("one/__init__.py", "")
    done = with_wheels(checkout, tmp_path / "bundle.tar", index)
    assert done.returncode == 1
    assert "make_offline_bundle: `" in done.stderr
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "bundle.tar").exists()
