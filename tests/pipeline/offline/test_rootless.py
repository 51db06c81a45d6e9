"""podman without root: an ordinary user runs canary and demo. Only by `make test-containers`, with the user's name in ISTSEG_TEST_USER (docs/sites.md)."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bundled import IMAGE, STORAGE, bare, done, images, run, run_demo, unpacked

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not os.environ.get("ISTSEG_TEST_CONTAINERS"), reason="runs by `make test-containers` only"),
    pytest.mark.skipif(not os.environ.get("ISTSEG_TEST_USER") or os.getuid() != 0, reason="root, and an ordinary user's name in ISTSEG_TEST_USER, are needed"),
]


@dataclass
class Person:
    """Somebody with a bundle and an image in a folder of their own."""

    bundle: Path
    env: dict[str, str]
    become: tuple[str, ...]
    number: int


@pytest.fixture(scope="module")
def person() -> Iterator[Person]:
    account = pwd.getpwnam(os.environ["ISTSEG_TEST_USER"])
    folder = Path(tempfile.mkdtemp(prefix="istseg-rootless-", dir=account.pw_dir))
    become = ("runuser", "-u", account.pw_name, "--")
    env = bare(folder / "home", CONTAINERS_STORAGE_CONF=str(folder / "storage.conf"), TMPDIR=str(folder), PATH="/usr/bin:/bin:/usr/sbin:/sbin")
    (folder / "storage.conf").write_text(STORAGE % (folder, folder))
    bundle = unpacked(folder, "--images", "none")
    done("chown", "-R", f"{account.pw_uid}:{account.pw_gid}", folder)
    try:
        save = subprocess.Popen(["podman", "save", "--format", "docker-archive", IMAGE], stdout=subprocess.PIPE)
        subprocess.run([*become, "podman", "load", "--quiet"], stdin=save.stdout, cwd=folder, env=env, check=True)
        assert save.wait() == 0
        yield Person(bundle, env, become, account.pw_uid)
    finally:
        subprocess.run([*become, "podman", "system", "reset", "--force"], cwd=folder, env=env, capture_output=True)
        shutil.rmtree(folder)


def test_canary_and_demo_without_root(person):
    said = done("podman", "info", "--format", "{{.Host.Security.Rootless}}", cwd=person.bundle, env=person.env, wrapper=person.become)
    assert said.splitlines()[-1] == "true"
    said, results = run(person.bundle, "canary,podman,offline", person.env, person.become)
    assert "All well: the pipeline can run here." in said
    assert images(results) == {IMAGE}
    results = run_demo(person.bundle, "demo,podman,offline", person.env, person.become)
    assert images(results) == {IMAGE}
    work = person.bundle.parent / "work"
    assert {path.stat().st_uid for path in (*results.rglob("*"), *work.rglob("*"))} == {person.number}, "inside and outside it is the same user"
