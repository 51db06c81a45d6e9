"""Pipeline and canary in real containers, with podman. Only when asked for (`make test-containers`): needs podman and the image istseg-core."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest

from conftest import ROOT
from istseg import __version__

IMAGE = f"localhost/istseg-core:{__version__}"
pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.slow,
    pytest.mark.timeout(7000),
    pytest.mark.skipif(not os.environ.get("ISTSEG_TEST_CONTAINERS"), reason="runs by `make test-containers` only"),
    pytest.mark.skipif(shutil.which("podman") is None, reason="there is no podman"),
]
# As a task of a careful site: nobody's user, nothing can be written to but /tmp, no network, no rights.
CAREFUL = (
    "--rm", "--read-only", "--tmpfs", "/tmp", "--user", "12345", "--network", "none", "--cap-drop", "all", "--security-opt", "no-new-privileges",
    "--no-healthcheck",
)  # fmt: skip
# Seconds that a run may take: on a machine that does much else at the same time they are many.
PATIENCE = 3000
SMALL = ("--exports", "none", "--umap_cells", 0)
CELLS = [f"{sample}/istseg.cells.parquet" for sample in ("demo_merscope", "demo_cosmx")]


def podman(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["podman", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module", autouse=True)
def image() -> dict:
    done = podman("image", "inspect", IMAGE)
    if done.returncode:
        pytest.fail(f"there is no image {IMAGE}; build it: docs/sites.md, Containers\n{done.stderr}", pytrace=False)
    return json.loads(done.stdout)[0]


def test_doctor_in_a_container_without_rights():
    done = podman("run", *CAREFUL, IMAGE, "istseg", "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    done = podman("run", *CAREFUL, IMAGE, "sh", "-c", "id -u; touch /opt/istseg/x || echo refused")
    assert done.stdout.split() == ["12345", "refused"]


def test_image_has_a_user_and_this_version(image):
    assert image["User"] == "1000:1000"
    assert podman("run", *CAREFUL, IMAGE, "istseg", "--version").stdout.split()[-1] == __version__


def test_canary_in_podman(nextflow, image):
    """In the very image that its digest names."""
    tag = f"{__version__}@{image['Digest']}"
    run = nextflow.run("-profile", "canary,podman,offline", "--container_tag", tag, timeout=PATIENCE)
    assert "All well: the pipeline can run here." in run.text
    assert "NOT OK" not in run.text
    assert {row["container"] for row in run.trace()} == {f"localhost/istseg-core:{tag}"}


def test_a_task_beyond_the_limit_of_its_container_is_tried_again_with_more(nextflow):
    """The kernel ends it, not the task itself: 1.2 GB in a container of 1 GB."""
    (nextflow.folder / "main.nf").write_text(
        "process EATER {\n    output:\n    stdout\n\n    script:\n"
        "    \"python -c 'x = bytearray(1_200_000_000); print(len(x), flush=True)'\"\n}\nworkflow { EATER() }\n"
    )
    (nextflow.folder / "site.config").write_text("process { withName: 'EATER' { ext.memory = [start: 333] } }\n")
    config = ("-c", ROOT / "nextflow.config", "-c", "site.config", "-profile", "podman,offline")
    done = nextflow.call("run", "main.nf", *config, "--max_memory", "6.GB", "--outdir", "out", timeout=PATIENCE)
    assert done.returncode == 0, done.stdout
    tasks = sorted((nextflow.folder / "work").glob("*/*/.exitcode"), key=lambda path: path.stat().st_mtime)
    assert [path.read_text() for path in tasks] == ["137", "0"], done.stdout
    asked = [re.search(r"--memory (\d+)m", (path.parent / ".command.run").read_text()).group(1) for path in tasks]
    assert int(asked[1]) == 2 * int(asked[0])


def test_the_pipeline_in_podman_gives_the_same_cells(nextflow):
    """Without the network, and beside a run of the same samples without containers."""
    inside = nextflow.run("-profile", "test,podman,offline", *SMALL, outdir="inside", timeout=PATIENCE)
    outside = nextflow.run("-profile", "test", *SMALL, outdir="outside", timeout=PATIENCE)
    for name in CELLS:
        assert (inside.outdir / name).read_bytes() == (outside.outdir / name).read_bytes(), name
    assert {row["container"] for row in inside.trace()} == {IMAGE}
    # The trace names the image of a process also where no container ran; the report must not.
    said = [json.loads((run.outdir / "report.json").read_text())["run"] for run in (inside, outside)]
    assert [run["container_engine"] for run in said] == ["podman", None]
    assert {name for resource in said[0]["resources"] for name in resource["containers"]} == {IMAGE}
    assert not any(resource["containers"] for resource in said[1]["resources"])


def test_comparators_in_podman(nextflow):
    """Foreign programs from images of their own."""
    for name in ("proseg", "comseg"):
        if podman("image", "exists", f"localhost/istseg-{name}:{__version__}").returncode:
            pytest.skip(f"there is no image istseg-{name}; build it: containers/{name}/Dockerfile")
    run = nextflow.run("-profile", "test,podman,offline", "--compare", "proseg,comseg", *SMALL, timeout=PATIENCE)
    used = {row["process"].split(":")[-1]: row["container"] for row in run.trace()}
    assert used["PROSEG"] == f"localhost/istseg-proseg:{__version__}"
    assert used["COMSEG"] == f"localhost/istseg-comseg:{__version__}"
    for name in ("proseg", "comseg"):
        assert {f"{sample}/{name}/counts.h5ad" for sample in ("demo_merscope", "demo_cosmx")} <= run.files(), run.text
