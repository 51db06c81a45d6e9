"""Names and folders that nobody should have, through the real Nextflow and the real Chromium: shown as text, never run, nothing outside of the results."""

from __future__ import annotations

import json
import shutil
import subprocess

import anndata
import pandas as pd
import pytest

from conftest import ROOT, Nextflow, Run
from istseg.artifacts.sample import Sample
from istseg.stages import simulate

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1500)]

PIPELINE, LAUNCH, WORK, OUT = "my pipeline's ü", "launch ö 'q' $HOME", "wörk dir", 'out ü d\'ir "q" $(touch pwned)'
TABLES = ("cell_boundaries.parquet", "cell_by_gene.csv", "cell_metadata.csv", "detected_transcripts.csv")
RAW = "raw ü 'x' \"y\" $(touch pwned);`touch pwned` & <b>"
STAIN = "<img src=x onerror=window.pwned=1>$(touch pwned);`touch pwned`|'\""
GENES = [
    '<img src=x onerror="window.pwned=1">',
    "</script><script>window.pwned=1</script>",
    "a'b\"c`touch pwned`",
    "$(touch pwned);touch pwned|x/y",
    "../../../pwned",
    "{{7*7}}%s\\n",
    '=cmd|"/c calc"!A1',
    "<!--",
    "a,b",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Run:
    """A run from a folder to a folder with such names, over a sample that is sound but for them."""
    folder = tmp_path_factory.mktemp("hostile")
    pipeline = folder / PIPELINE
    pipeline.mkdir()
    for name in ("main.nf", "nextflow.config", "nextflow_schema.json", "workflows", "modules", "conf", "bin", "assets"):
        shutil.copytree(ROOT / name, pipeline / name) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, pipeline / name)
    for name in (".venv", ".istseg"):
        (pipeline / name).symlink_to(ROOT / name)
    simulate.run(
        out=folder / "sim", platform="merscope", width_um=60, height_um=60, planes=1, stains="Cellbound1;PolyT", degraded_fraction=0.0, degraded_contour=0.5,
        transcripts_per_um2=1.0, empty_fraction=0.0, generation="", seed=3, autofluorescence=0.0,
    )  # fmt: skip
    raw = (folder / "sim" / "raw").rename(folder / RAW)
    table = pd.read_csv(raw / "detected_transcripts.csv")
    names = [gene for gene in table["gene"].value_counts().index if not gene.startswith("Blank")]
    table["gene"] = table["gene"].replace(dict(zip(names, GENES, strict=False)))
    table.to_csv(raw / "detected_transcripts.csv", index=False)
    images, mine = raw / "images", f"mosaic_{STAIN}_z0.tif"
    (images / "mosaic_Cellbound1_z0.tif").rename(images / mine)
    manifest = json.loads((images / "manifest.json").read_text())
    for entry in manifest["mosaic_files"]:
        entry.update({"stain": STAIN, "file_name": mine} if entry["stain"] == "Cellbound1" else {})
    (images / "manifest.json").write_text(json.dumps(manifest))
    # A folder that holds itself: Nextflow looks at all files of the raw folder.
    (raw / "again").symlink_to(raw, target_is_directory=True)
    (folder / "samples.csv").write_text('sample,platform,path\nevil,merscope,"' + RAW.replace('"', '""') + '"\n')

    (folder / LAUNCH).mkdir()
    started = Nextflow(folder / LAUNCH)
    started.executable = pipeline / "bin" / "nextflow"
    few = ("-profile", "test", "--compare", "vendor", "--max_cpus", 2, "--exports", "spatialdata,geojson,vizgen,explorer,cosmx,ometiff")
    done = started.call("run", pipeline, "--input", "../samples.csv", "--outdir", f"../{OUT}", "-work-dir", f"../{WORK}", *few, timeout=1400)
    assert done.returncode == 0, done.stdout
    return Run(done.returncode, done.stdout, folder, folder / OUT)


def test_the_run_is_whole_and_writes_nowhere_else(hostile):
    assert {row["status"] for row in hostile.trace()} == {"COMPLETED"}
    assert {path.name for path in hostile.folder.iterdir()} == {PIPELINE, LAUNCH, WORK, OUT, RAW, "sim", "samples.csv"}
    assert {path.name for path in (hostile.folder / LAUNCH).iterdir()} <= {".nextflow", ".nextflow.log"}
    assert list(hostile.folder.rglob("pwned")) == []
    assert {path.name for path in (hostile.folder / RAW).iterdir()} == {"again", "images", *TABLES}
    subprocess.run(["sha256sum", "--check", "--quiet", "checksums.sha256"], cwd=hostile.outdir, check=True)


def test_names_are_kept_as_they_are(hostile):
    assert STAIN in [stain.name for stain in Sample.read(hostile.outdir / "evil" / "sample.json").stains]
    assert set(GENES) <= set(anndata.read_h5ad(hostile.outdir / "evil" / "istseg" / "counts.h5ad").var_names)
    exports = hostile.outdir / "evil" / "exports"
    assert set(GENES) <= set(pd.read_csv(exports / "vizgen" / "detected_transcripts.csv")["gene"])
    assert set(GENES) <= set(pd.read_csv(exports / "vizgen" / "cell_by_gene.csv", nrows=0).columns)


def test_the_report_shows_names_and_runs_nothing(hostile, chromium):
    said = []
    page = chromium.new_page(viewport={"width": 1366, "height": 900})
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("dialog", lambda d: said.append(d.message))
    page.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) or "evil" in r.url else None)
    page.goto((hostile.outdir / "report.html").as_uri())
    for y in range(0, page.evaluate("document.documentElement.scrollHeight"), 700):
        page.evaluate(f"scrollTo(0, {y})")
        page.wait_for_timeout(120)
    page.get_by_label("RNA").first.check()
    page.wait_for_timeout(300)
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.querySelectorAll('[onerror], img[src=x], svg script').length") == 0
    text = page.evaluate("document.body.textContent")
    page.close()
    assert said == []
    assert STAIN in text
