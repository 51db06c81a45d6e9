"""What this machine or container has of what istseg needs: versions, device, weights, disk, memory, programs. Nothing is changed, nothing is fetched."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from istseg import __version__
from istseg.artifacts.files import read_json, sha256
from istseg.errors import InputError, IstsegError

OK, NOTE, BAD = "ok", "note", "not ok"
PACKAGES = ("numpy", "torch", "anndata", "scanpy", "spatialdata", "cellpose", "zarr", "pyarrow", "tifffile", "scikit-image")
PROGRAMS = {"proseg": "proseg/bin/proseg", "comseg": "comseg/bin/python"}
"""Comparators that are programs of their own, and where `make comparators` puts them. Baysor is not among them: nothing here installs it."""
_MIN_TMP_BYTES = 1e9
_MIN_MEMORY_BYTES = 3e9
_PROGRAM_SECONDS = 60


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name
        What it is.
    state
        `OK`; `NOTE`: something that not every run needs is missing; `BAD`: runs will fail.
    found
        What is there, in a few words.
    advice
        What to do; empty when nothing.
    """

    name: str
    state: str
    found: str
    advice: str = ""


def examine(
    *,
    device: str = "cpu",
    weights: list[Path] | None = None,
    assets: Path | None = None,
    disk: Path = Path("."),
    min_disk_gb: float = 1.0,
    programs: Path | None = None,
) -> Iterator[Check]:
    """Look at everything, one check after the other.

    Parameters
    ----------
    device
        `cpu`, or `cuda` where a GPU must be there.
    weights
        Further files of weights: their checksums are told.
    assets
        The pipeline's `assets/`, whose shipped weights are checked against `weights.json`. Default: that of the checkout that this package lies in; in an
        image there is none, the pipeline brings them.
    disk
        Folder whose free space counts.
    min_disk_gb
        Least free space there, GB.
    programs
        Folder of the comparators' programs. Default: as for `assets`.
    """
    root = Path(__file__).resolve().parents[2]
    yield Check("istseg", OK, f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield from map(_package, PACKAGES)
    yield from _devices(device)
    yield from _weights(weights or [], assets or root / "assets")
    yield _space("disk", disk, min_disk_gb * 1e9)
    yield _memory()
    yield _space("temporary folder", Path(tempfile.gettempdir()), _MIN_TMP_BYTES)
    yield from map(_writable, ("MPLCONFIGDIR", "NUMBA_CACHE_DIR"))
    yield _program("ps", ["ps", "--version"], "Nextflow measures tasks with it; install procps.", state=BAD)
    yield _program("java", ["java", "-version"], "Only the machine that starts the pipeline needs Java 17 or newer.")
    yield _program("nextflow", [str(root / "bin" / "nextflow"), "-version"], "Only the machine that starts the pipeline needs it: `make setup`.")
    yield from (_comparator(name, programs or root / ".istseg" / "comparators") for name in PROGRAMS)
    yield _baysor()


def _package(name: str) -> Check:
    try:
        return Check(name, OK, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, BAD, "is not installed", "This environment is not the locked one: `make setup`, or use the image.")


def _devices(device: str) -> Iterator[Check]:
    """What computes, and in which precision."""
    # Not above: torch takes seconds, and without it the other checks still say something.
    try:
        import torch

        from istseg.network.inference import open_device, precision_of

        chosen = open_device(device)
    except (ImportError, OSError, IstsegError) as error:
        yield Check(f"device {device}", BAD, str(error), "" if isinstance(error, IstsegError) else "torch cannot be loaded: install the environment again.")
        return
    precision = str(precision_of(chosen)).removeprefix("torch.")
    if device == "cpu":
        yield Check("device cpu", OK, f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads, precision {precision}")
        if torch.cuda.is_available():
            yield Check("device cuda", NOTE, f"{torch.cuda.device_count()} GPUs are not used", "Add --gpu or the profile `gpu`.")
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        yield Check(f"device cuda:{number}", OK, f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}, precision {precision}")


def _weights(given: list[Path], assets: Path) -> Iterator[Check]:
    """Shipped weights against their checksums; those given by the user with theirs."""
    try:
        listed = [entry for entry in read_json(assets / "weights.json", "the list of weights")["weights"] if entry["shipped"]]
    except InputError:
        yield Check("weights", NOTE, "none here", "In a container the pipeline brings them.")
        listed = []
    for entry in listed:
        path = assets / entry["file"]
        found = sha256(path) if path.is_file() else None
        if found == entry["sha256"]:
            yield Check(entry["name"], OK, f"sha256 {found[:12]}…")
        else:
            yield Check(entry["name"], BAD, f"sha256 {found[:12]}… is not that of weights.json" if found else f"there is no {path}", "Get the pipeline again.")
    for path in given:
        if path.is_file():
            yield Check(path.name, OK, f"sha256 {sha256(path)}")
        else:
            yield Check(path.name, BAD, f"there is no file {path}", "Give the path as this machine sees it.")


def _space(name: str, folder: Path, least: float) -> Check:
    """Whether a folder can be written to and has room."""
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"x")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(name, BAD, f"{folder}: {error.strerror}", "Choose a folder that can be written to (TMPDIR for the temporary one).")
    found = f"{folder.resolve()}: {free / 1e9:.1f} GB free"
    return Check(name, OK, found) if free >= least else Check(name, BAD, found, f"At least {least / 1e9:g} GB are needed: make room or choose another folder.")


def _memory() -> Check:
    memory = psutil.virtual_memory()
    limit = _cgroup_limit()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free" + (f", limit {limit / 1e9:.1f} GB" if limit else "")
    # The limit of a container is what its task asked for, and small tasks ask for less.
    return Check("memory", OK, found) if memory.total >= _MIN_MEMORY_BYTES else Check("memory", BAD, found, "Tasks need 3 GB or more.")


def _cgroup_limit() -> int | None:
    """Bytes that a container may use; None without a limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < 1 << 60 else None
    return None


def _writable(variable: str) -> Check:
    """Where a library keeps what it compiles or caches: its own default is asked for when the variable is not set."""
    folder = os.environ.get(variable)
    if folder is None:
        home = Path.home()
        state = OK if os.access(home, os.W_OK) else NOTE
        return Check(
            variable, state, f"not set, home is {home}", "" if state == OK else f"The home is read-only: set {variable} to a folder that can be written to."
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Check(variable, OK, folder)
    except OSError as error:
        return Check(variable, BAD, f"{folder}: {error.strerror}", f"Set {variable} to a folder that can be written to.")


def _program(name: str, command: list[str], advice: str, state: str = NOTE) -> Check:
    """Version of a program, by its first line with a digit."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROGRAM_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return Check(name, state, "not here", advice)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if any(c.isdigit() for c in line)]
    if done.returncode or not lines:
        return Check(name, state, "does not run", advice)
    return Check(name, OK, lines[0])


def _comparator(name: str, programs: Path) -> Check:
    """Optional: no run needs it that does not name it in `--compare`."""
    path = programs / PROGRAMS[name]
    if os.access(path, os.X_OK):
        return Check(f"comparator {name}", OK, str(path))
    return Check(f"comparator {name}", OK, f"not here; optional, for --compare {name} only", f"To have it: `bin/setup_comparators {name}`, or its image.")


def _baysor() -> Check:
    found = shutil.which("baysor")
    if found:
        return Check("comparator baysor", OK, f"{found}; give it with --baysor")
    return Check(
        "comparator baysor",
        OK,
        "not here; optional, for --compare baysor only",
        "Nothing here installs it: unpack its release and give bin/baysor with --baysor, or build its image.",
    )


def as_json(checks: list[Check]) -> str:
    """All checks for a program to read, and whether all is well."""
    return json.dumps({"ok": all(c.state != BAD for c in checks), "python": sys.executable, "checks": [vars(c) for c in checks]}, indent=2)


def as_table(checks: list[Check]):
    """All checks for a person to read: a table of rich."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    colours = {OK: "green", NOTE: "yellow", BAD: "bold red"}
    for check in checks:
        table.add_row(Text(check.state, colours[check.state]), Text(check.name), Text(check.found), Text(check.advice))
    return table
