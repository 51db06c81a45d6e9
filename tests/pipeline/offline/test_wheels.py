"""A bundle with wheels, on a machine without a network and without containers: `make setup`, then the demo. Only when asked for (`make test-offline`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile

import pytest
from bundled import bare, cut_off, done, run_demo, unpacked

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not os.environ.get("ISTSEG_TEST_OFFLINE"), reason="runs by `make test-offline` only: fetches all packages, needs 20 GB of disk"),
]


def test_set_up_and_demo_from_a_bundle_with_wheels(tmp_path):
    bundle = unpacked(tmp_path, "--images", "none", "--wheels")
    assert not (bundle / "pipeline" / ".venv").exists()
    env = bare(tmp_path / "home")
    said = done("python3", bundle / "verify_offline_bundle", bundle, env=env, wrapper=cut_off())
    assert "make -C pipeline setup" in said

    # A wheel that is not the one of the lock is not installed, whatever the verifier said.
    wheel = next((bundle / "pipeline" / ".istseg" / "wheels" / "requirements").glob("shapely-*.whl"))
    content = wheel.read_bytes()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.comment = b"another wheel"
    refused = subprocess.run([*cut_off(), "make", "-C", bundle / "pipeline", "setup"], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "ash mismatch" in refused.stderr, refused.stderr
    wheel.write_bytes(content)

    said = done("make", "-C", bundle / "pipeline", "setup", env=env, wrapper=cut_off())
    assert "environment .venv from the wheels of the bundle" in said
    assert "Nextflow: is there" in said
    # Neither the wheels nor what uv kept are needed any more.
    shutil.rmtree(tmp_path / "home" / ".cache")
    shutil.rmtree(bundle / "pipeline" / ".istseg" / "wheels")
    run_demo(bundle, "demo,offline", env)
