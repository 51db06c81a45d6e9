#!/usr/bin/env python3
"""Install the pinned Nextflow from Maven Central without Maven, every jar checked by its sha256.

    install_nextflow.py TARGET [--check]

Writes TARGET/*.jar by write-then-rename. `--check` only says by its exit status whether TARGET holds what the lock names.
Runs in the bootstrap environment (needs jgo); `--check` needs the standard library only.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "assets" / "nextflow-25.04.4.lock"
STAMP = "installed.lock"
ATTEMPTS = 4
DOWNLOADS_AT_ONCE = 6


def read_lock(path=LOCK):
    """`(group, artifact, version, sha256)` of each jar."""
    lines = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return [(*coordinates.split(":"), digest) for coordinates, digest in lines]


def is_installed(target):
    """Whether the stamp of the target is this very lock and all jars are there."""
    stamp = target / STAMP
    return stamp.is_file() and stamp.read_bytes() == LOCK.read_bytes() and all((target / f"{jar[1]}-{jar[2]}.jar").is_file() for jar in read_lock())


def fetch(context, jar, folder):
    """Download one jar into a folder and check it.

    Raises
    ------
    RuntimeError
        When it cannot be had, or its checksum is not the locked one.
    """
    group, artifact, version, expected = jar
    wanted = context.project(group, artifact).at_version(version).artifact()
    problem = ""
    for attempt in range(ATTEMPTS):
        try:
            path = Path(wanted.resolve())
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest == expected:
                shutil.copyfile(path, folder / f"{artifact}-{version}.jar")
                return
            path.unlink()  # cut off or tampered with: never used
            problem = f"its sha256 is {digest}, the lock says {expected}"
        except Exception as error:  # noqa: BLE001  any kind of network error deserves another try
            if wanted.cached_path and wanted.cached_path.exists():
                wanted.cached_path.unlink()
            problem = str(error)
        time.sleep(2**attempt)
    raise RuntimeError(f"{group}:{artifact}:{version}: {problem}")


def install(target):
    """Fetch all jars and put them in place at once."""
    from jgo.maven import MavenContext, PythonResolver

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".nextflow-") as temporary:
        folder = Path(temporary) / "jars"
        folder.mkdir()
        context = MavenContext(repo_cache=Path(temporary) / "cache", resolver=PythonResolver(), timeout=60)
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            list(pool.map(lambda jar: fetch(context, jar, folder), read_lock()))
        shutil.copyfile(LOCK, folder / STAMP)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)


def main():
    """Command line."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    if len(arguments) != 1:
        sys.exit("usage: install_nextflow.py TARGET [--check]")
    target = Path(arguments[0])
    if "--check" in sys.argv:
        sys.exit(0 if is_installed(target) else 1)
    if is_installed(target):
        return
    try:
        install(target)
    except RuntimeError as error:
        sys.exit(f"install_nextflow: {error}")


if __name__ == "__main__":
    main()
