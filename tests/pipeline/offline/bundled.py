"""A bundle of this checkout as `bin/make_offline_bundle` writes it, unpacked elsewhere, and the machine that it is unpacked on: no network, an empty home."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from istseg import __version__

NAME = f"istseg-offline-{__version__}"
IMAGE = f"localhost/istseg-core:{__version__}"
STORAGE = """
[storage]
driver = "overlay"
graphroot = "%s/images"
runroot = "%s/running"
"""
"""An empty store of podman below two folders."""
PUBLISHED = ("report.html", "demo_merscope/istseg/counts.h5ad", "demo_cosmx/istseg/counts.h5ad")


def commit_here(folder: Path) -> Path:
    """The tracked files as they lie here, committed in a repository of its own: the program takes nothing that differs from the commit."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / ".istseg").mkdir()
    for part in ("nextflow", "bootstrap"):
        (folder / ".istseg" / part).symlink_to((ROOT / ".istseg" / part).resolve())
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def unpacked(folder: Path, *options: str) -> Path:
    """A bundle made, checked as archive, unpacked, the archive removed (it is large), and checked again. Its folder."""
    source = commit_here(folder / "here")
    archive = folder / "bundle.tar"
    done(sys.executable, source / "bin" / "make_offline_bundle", archive, *options)
    shutil.rmtree(source)
    there = folder / "elsewhere"
    there.mkdir()
    verifier = ROOT / "bin" / "verify_offline_bundle"
    said = done(sys.executable, verifier, archive)
    done("tar", "-xf", archive, "-C", there)
    archive.unlink()
    assert said.splitlines()[0].endswith("all as they were made.")
    return there / NAME


def done(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None, wrapper: tuple[str, ...] = ()) -> str:
    """What a command prints on both streams; fails the test when the command fails."""
    ended = subprocess.run(
        [*wrapper, *map(str, command)], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if ended.returncode:
        pytest.fail(f"{' '.join(map(str, command))} ended with {ended.returncode}\n{ended.stdout}", pytrace=False)
    return ended.stdout


def cut_off() -> tuple[str, ...]:
    """In a network namespace without interfaces; the test is skipped where this user may not make one."""
    wrapper = ("unshare", "--net")
    if subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a network namespace")
    assert subprocess.run([*wrapper, "ip", "-brief", "link", "show", "up"], capture_output=True, text=True).stdout == ""
    return wrapper


def bare(home: Path, **more: str) -> dict[str, str]:
    """Environment of somebody who has just logged in: an empty home, commands and Java, no cache, no settings."""
    home.mkdir()
    kept = {name: os.environ[name] for name in ("JAVA_HOME", "CONTAINERS_CONF") if name in os.environ}
    # The Python that runs the tests is that of the wheels.
    return {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(home), **kept, **more}


def run(bundle: Path, profile: str, env: dict[str, str], user: tuple[str, ...] = ()) -> tuple[str, Path]:
    """The pipeline from the bundle, off the network, perhaps as another user. What Nextflow says, and the results."""
    results = bundle.parent / profile.partition(",")[0]
    command = (bundle / "pipeline" / "bin" / "nextflow", "run", bundle / "pipeline", "-profile", profile, "--outdir", results)
    said = done(*command, cwd=bundle.parent, env={**env, "NXF_ANSI_LOG": "false", "OMP_NUM_THREADS": "1"}, wrapper=(*cut_off(), *user))
    return said, results


def run_demo(bundle: Path, profile: str, env: dict[str, str], user: tuple[str, ...] = ()) -> Path:
    """The demo's results, which are there."""
    _, results = run(bundle, profile, env, user)
    for name in PUBLISHED:
        assert (results / name).stat().st_size > 1000, name
    return results


def images(results: Path) -> set[str]:
    """Images of all tasks."""
    with open(results / "pipeline_info" / "trace.tsv", newline="") as stream:
        return {row["container"] for row in csv.DictReader(stream, delimiter="\t")}
