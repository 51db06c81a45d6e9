"""A bundle with its image, on a machine without a network that never saw either: load it, then the demo in podman. Only by `make test-containers`."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from bundled import IMAGE, STORAGE, bare, cut_off, done, images, run_demo, unpacked

from istseg import __version__

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not os.environ.get("ISTSEG_TEST_CONTAINERS"), reason="runs by `make test-containers` only: needs 25 GB of disk"),
    pytest.mark.skipif(shutil.which("podman") is None, reason="there is no podman"),
]


def test_the_demo_runs_in_podman_from_a_bundle_and_its_image(tmp_path):
    """podman's store is a new one, so the image can come from the bundle only."""
    if subprocess.run(["podman", "image", "exists", IMAGE]).returncode:
        pytest.fail(f"there is no image {IMAGE}; build it: docs/sites.md, Containers", pytrace=False)
    known = done("podman", "image", "inspect", "--format", "{{.Id}}", IMAGE).strip()
    bundle = unpacked(tmp_path, "--images", "save")
    (tmp_path / "storage.conf").write_text(STORAGE % (tmp_path, tmp_path))
    env = bare(tmp_path / "home", CONTAINERS_STORAGE_CONF=str(tmp_path / "storage.conf"), TMPDIR=str(tmp_path))
    assert done("podman", "images", "--quiet", env=env) == ""
    try:
        said = done("python3", bundle / "verify_offline_bundle", bundle, env=env, wrapper=cut_off())
        assert f"podman load -i images/istseg-core-{__version__}.tar" in said
        done("podman", "load", "--quiet", "-i", f"images/istseg-core-{__version__}.tar", cwd=bundle, env=env, wrapper=cut_off())
        assert done("podman", "image", "inspect", "--format", "{{.Id}}", IMAGE, env=env).strip() == known
        shutil.rmtree(bundle / "images")
        assert images(run_demo(bundle, "demo,podman,offline", env)) == {IMAGE}
    finally:
        subprocess.run(["podman", "system", "reset", "--force"], env=env, capture_output=True)
