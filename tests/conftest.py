"""Fixtures that several folders of tests share: the real Nextflow, the real samples."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Sums of floats depend on the number of threads, and libraries that other tests load change it behind our back."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real samples; skips where they are not."""
    folder = Path(os.environ.get("ISTSEG_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real samples are not here ({folder}); set ISTSEG_REAL_DATA")
    return folder.resolve()


@dataclass
class Run:
    """A run of Nextflow that has ended."""

    code: int
    text: str
    folder: Path
    outdir: Path

    def trace(self) -> list[dict[str, str]]:
        """Rows of the trace of tasks; `process` without the workflow's name."""
        with open(self.outdir / "pipeline_info" / "trace.tsv", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        return [{**row, "process": row["process"].rpartition(":")[2]} for row in rows]

    def record(self) -> dict:
        """`run.json`."""
        return json.loads((self.outdir / "pipeline_info" / "run.json").read_text())

    def files(self) -> set[str]:
        """Published files, relative to the results folder; a store counts as one."""
        found = {p.relative_to(self.outdir).as_posix() for p in self.outdir.rglob("*") if p.is_file()}
        return {f.split(".zarr/")[0] + ".zarr" if ".zarr/" in f else f for f in found}


class Nextflow:
    """Starts Nextflow in a folder of its own, without the network where the machine allows that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.executable = ROOT / "bin" / "nextflow"

    def call(self, *args: object, timeout: float = 300, env: dict[str, str] | None = None, wrapper: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        """Any Nextflow command; both streams in `stdout`."""
        command = [*wrapper, str(self.executable), *map(str, args)]
        # Without a locale, as in cron and on bare CI machines: names beyond ASCII must work there too.
        bare = {name: value for name, value in os.environ.items() if name != "LANG" and not name.startswith("LC_")}
        environment = {**bare, "NXF_ANSI_LOG": "false", **(env or {})}
        return subprocess.run(
            command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )

    def run(self, *args: object, parser: str = "v1", outdir: str = "out", ok: bool = True, env: dict[str, str] | None = None, **options: object) -> Run:
        """`nextflow run` of this pipeline; fails the test when the run fails and `ok` is True."""
        done = self.call("run", ROOT, "--outdir", outdir, *args, env={"NXF_SYNTAX_PARSER": parser, **(env or {})}, **options)
        if ok and done.returncode:
            pytest.fail(f"nextflow ended with {done.returncode}\n{done.stdout}", pytrace=False)
        return Run(done.returncode, done.stdout, self.folder, self.folder / outdir)

    def config(self, profile: str = "standard") -> dict:
        """The resolved configuration."""
        done = self.call("-q", "config", "-o", "json", "-profile", profile, ROOT)
        assert done.returncode == 0, done.stdout
        return json.loads(done.stdout[done.stdout.index("{") :])

    def samplesheet(self, *rows: str, header: str = "sample,platform,path", name: str = "samples.csv") -> Path:
        """A samplesheet in the run's folder."""
        path = self.folder / name
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return path


@pytest.fixture
def nextflow(tmp_path: Path) -> Nextflow:
    """Nextflow in a fresh folder."""
    return _nextflow(tmp_path)


@pytest.fixture(scope="module")
def nextflow_module(tmp_path_factory: pytest.TempPathFactory) -> Nextflow:
    """Nextflow in a folder that the tests of a module share."""
    return _nextflow(tmp_path_factory.mktemp("nextflow"))


def _nextflow(folder: Path) -> Nextflow:
    started = Nextflow(folder)
    if not (ROOT / ".istseg").is_dir():
        pytest.fail("Nextflow is not set up; run `make setup`.", pytrace=False)
    return started


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory):
    """One undisturbed road of all stages for the tests of tests/faults (`undisturbed.py` there)."""
    import undisturbed

    return undisturbed.build(tmp_path_factory.mktemp("road"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """One exported sample for the tests of what other tools read of it (`export_fixtures.build`)."""
    import export_fixtures

    return export_fixtures.build(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def chromium():
    """A real browser without a window; skips where none is installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium): the report is not tried in a browser")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    quiet = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[f"--{a}" for a in quiet])
        yield browser
        browser.close()


@pytest.fixture
def slurm(tmp_path: Path, request: pytest.FixtureRequest):
    """A real SLURM of one node for the tests of tests/pipeline/slurm (`one_node.py` there); its parameter: environment of up.sh."""
    import one_node

    with one_node.started(tmp_path / "slurm", getattr(request, "param", {})) as cluster:
        yield cluster
