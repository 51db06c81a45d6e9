"""Helpers for people: samplesheet, subset, explain, view."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import tifffile
from typer.testing import CliRunner

import raw_fixtures as fx
from istseg.artifacts import spatial
from istseg.artifacts.sample import Sample, apply_affine
from istseg.cli import app, main
from istseg.errors import InputError, IstsegError
from istseg.helpers import explain, sheet, subset, view
from istseg.raw import open_raw
from istseg.raw.base import Options
from istseg.stages import convert, preflight

ROOT = Path(__file__).resolve().parents[2]


def test_samplesheet_finds_every_platform_once_and_preflight_takes_it(tmp_path: Path) -> None:
    runs = tmp_path / "my runs"
    fx.merscope(runs / "2024 a" / "region_0")
    fx.merscope(runs / "2024 a" / "region_1", cells="none")
    fx.xenium(runs / "x" / "output-R1", n=3000)
    fx.cosmx(runs / "slide" / "S1")
    deep = runs / "raw tree"
    fx.cosmx(deep / "DecodedFiles")
    (deep / "flatFiles").mkdir()
    for path in (deep / "DecodedFiles").glob("S1_*"):
        path.rename(deep / "flatFiles" / path.name)
    (runs / "again").symlink_to(runs / "slide")
    sheet.run(folder=runs, out=tmp_path / "sheet.csv")
    rows = list(csv.DictReader((tmp_path / "sheet.csv").read_text().splitlines()))
    assert {(r["platform"], r["path"]) for r in rows} == {
        ("merscope", "my runs/2024 a/region_0"), ("merscope", "my runs/2024 a/region_1"), ("xenium", "my runs/x/output-R1"),
        ("cosmx", "my runs/slide/S1"), ("cosmx", "my runs/raw tree"),
    }  # fmt: skip
    assert len({r["sample"] for r in rows}) == 5
    preflight.run(samplesheet=tmp_path / "sheet.csv", out=tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "preflight.json").read_text())["samples"]) == 5
    with pytest.raises(InputError, match="is there already"):
        sheet.run(folder=runs, out=tmp_path / "sheet.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no raw folder"):
        sheet.run(folder=tmp_path / "empty", out=tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()


def test_samplesheet_lists_a_damaged_sample_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fx.merscope(tmp_path / "runs" / "region_0")
    (tmp_path / "runs" / "region_0" / "images" / "micron_to_mosaic_pixel_transform.csv").unlink()
    sheet.run(folder=tmp_path / "runs", out=tmp_path / "s.csv")
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 2
    assert any("micron_to_mosaic" in r.message for r in caplog.records if r.levelname == "WARNING")


def _remove(root: Path, *patterns: str) -> None:
    for pattern in patterns:
        found = list(root.glob(pattern))
        assert found, pattern
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGE = {
    "merscope without table": ("merscope", fx.merscope, ("detected_transcripts.csv",), "detected_transcripts"),
    "merscope without images": ("merscope", fx.merscope, ("images",), "images: cannot be read"),
    "merscope without table and transform": ("merscope", fx.merscope, ("detected_transcripts.csv", "images/*.csv"), "micron_to_mosaic"),
    "cosmx without transcripts": ("cosmx", fx.cosmx, ("S1_tx_file.csv.gz",), "has no transcript table"),
    "cosmx without tables": ("cosmx", fx.cosmx, ("S1_*.csv.gz",), "has no transcript table"),
    "cosmx without images": ("cosmx", fx.cosmx, ("CellStatsDir",), "has no images"),
    "cosmx without images and transcripts": ("cosmx", fx.cosmx, ("CellStatsDir", "S1_tx_file.csv.gz"), "has no images"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_samplesheet_lists_what_is_left_of_a_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str) -> None:
    platform, write, missing, message = DAMAGE[case]
    runs = tmp_path / "runs"
    fx.merscope(runs / "good_merscope")
    fx.cosmx(runs / "good_cosmx")
    write(runs / "a" / "damaged")
    _remove(runs / "a" / "damaged", *missing)
    (runs / "pictures").mkdir()
    tifffile.imwrite(runs / "pictures" / "mosaic.tif", np.zeros((4, 4), np.uint8))
    tifffile.imwrite(runs / "pictures" / "S1_F00001.TIF", np.zeros((4, 4), np.uint8))
    sheet.run(folder=runs, out=tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert {(r["platform"], r["path"]) for r in rows} == {
        (platform, "runs/a/damaged"), ("merscope", "runs/good_merscope"), ("cosmx", "runs/good_cosmx")
    }  # fmt: skip
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith(f"a_damaged ({runs / 'a' / 'damaged'}): ") and message in warning


def test_samplesheet_takes_flat_files_and_images_of_a_damaged_slide_together(tmp_path: Path) -> None:
    fx.cosmx(tmp_path / "slide" / "raw")
    (tmp_path / "slide" / "flat").mkdir()
    (tmp_path / "slide" / "raw" / "S1_fov_positions_file.csv.gz").rename(tmp_path / "slide" / "flat" / "S1_fov_positions_file.csv.gz")
    (tmp_path / "slide" / "raw" / "S1_tx_file.csv.gz").unlink()
    assert sheet.find(tmp_path) == [("cosmx", tmp_path / "slide")]


def test_samplesheet_leaves_out_what_istseg_exported(exported, tmp_path: Path) -> None:
    out = tmp_path / "results" / "s" / "exports"
    shutil.copytree(exported.root / "out", out)
    (out / "explorer").mkdir()
    (out / "explorer" / "experiment.xenium").write_text("{}")
    (out / "explorer" / "cell_ids.csv").write_text("explorer_id,cell_id\n")
    assert {"vizgen", "cosmx"} <= {p.name for p in out.iterdir()}
    fx.merscope(tmp_path / "exports" / "vizgen")
    (tmp_path / "exports" / "vizgen" / "cell_metadata.csv").write_text("EntityID,fov\n1,2\n")
    assert sheet.find(tmp_path) == [("merscope", tmp_path / "exports" / "vizgen")]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file/x.csv", "file: File exists. A file lies where a folder must be: move it away, or give another path."),
        ("file/sub/x.csv", "file/sub: Not a directory. A file lies where a folder must be"),
        ("/proc/x.csv", "ERROR: /proc/x.csv: No such file or directory. Check the path, or give another one."),
    ],
)
def test_a_path_that_cannot_be_written_is_told_as_it_was_given(tmp_path, monkeypatch, capsys, out: str, message: str) -> None:
    fx.merscope(tmp_path / "runs")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["istseg", "--quiet", "samplesheet", str(tmp_path / "runs"), "--out", str(tmp_path / out)])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err
    assert end.value.code == 1 and message in told and ".part" not in told and len(told.splitlines()) == 1


def test_names_of_samples_are_allowed_and_unique(tmp_path: Path) -> None:
    taken: set[str] = set()
    names = [sheet._name(tmp_path / p, tmp_path, taken) for p in ("a/région 0", "a/r_gion_0", "cohort", "...", "x" * 200)]
    assert names == ["a_r_gion_0", "a_r_gion_0_2", "s_cohort", "sample", "x" * 70]


@pytest.mark.parametrize("cells", ["parquet", "hdf5"])
@pytest.mark.parametrize("table", ["csv", "csv.gz", "parquet"])
def test_subset_of_a_merscope_region(tmp_path: Path, cells: str, table: str) -> None:
    truth = fx.merscope(tmp_path / "raw", cells=cells, table=table)
    (low, high) = apply_affine(np.linalg.inv(truth["matrix"]), np.array([[15, 22], [105, 182]]))
    region = ",".join(map(str, [*low, *high]))
    subset.run(raw=tmp_path / "raw", platform="merscope", out=tmp_path / "part", region=region)
    reader = open_raw("merscope", tmp_path / "part", Options())
    facts = reader.inspect()
    pixels = tifffile.imread(tmp_path / "part" / "images" / "mosaic_PolyT_z1.tif")
    y0, x0 = (int(round(float(-facts.micron_to_pixel[i, 2] + truth["matrix"][i, 2]))) for i in (1, 0))
    np.testing.assert_array_equal(pixels, truth["images"]["PolyT", 1][y0 : y0 + pixels.shape[0], x0 : x0 + pixels.shape[1]])
    assert abs(x0 - 15) <= 1 and abs(y0 - 22) <= 1 and abs(pixels.shape[1] - 90) <= 2
    rows = pd.concat([block.to_pandas() for block in reader.transcripts()])
    px = apply_affine(facts.micron_to_pixel, rows[["x", "y"]].to_numpy())
    assert ((px >= 0) & (px < pixels.shape[::-1])).all(), "what lies outside the part is not in its table"
    inside = (truth["px"] >= x0) & (truth["px"] < x0 + pixels.shape[1]) & (truth["py"] >= y0) & (truth["py"] < y0 + pixels.shape[0])
    assert len(rows) == inside.sum() > 20
    np.testing.assert_allclose(np.sort(rows["x"]), np.sort(truth["transcripts"].loc[inside, "global_x"]), rtol=1e-12)
    whole_ids, whole, _ = open_whole(tmp_path / "raw").vendor_cells(1)
    ids, polygons, _ = reader.vendor_cells(1)
    assert 0 < len(ids) < len(whole_ids)
    known = dict(zip(whole_ids, whole, strict=True))
    assert all(known[name].equals(polygon) for name, polygon in zip(ids, polygons, strict=True)), "micron coordinates stay"


def open_whole(root: Path):
    reader = open_raw("merscope", root, Options())
    reader.inspect()
    return reader


@pytest.mark.parametrize("generation", ["A", "C"])
def test_subset_of_cosmx_fields_of_view(tmp_path: Path, generation: str) -> None:
    truth = fx.cosmx(tmp_path / "raw", generation=generation, polygons=True)
    subset.run(raw=tmp_path / "raw", platform="cosmx", out=tmp_path / "part", fovs="2;4")
    reader = open_raw("cosmx", tmp_path / "part", Options(pixel_size_um=0.12028))
    assert reader.inspect().details["fovs"] == [2, 4]
    strips = np.concatenate([s.copy() for s in reader.strips(64, tmp_path)], axis=1)
    np.testing.assert_array_equal(strips, truth["mosaic"][:, :, 160:])
    rows = sum(block.num_rows for block in reader.transcripts())
    assert rows == truth["table"]["fov"].isin([2, 4]).sum()
    assert {name.split("_")[1] for name in reader.vendor_cells(None)[0]} == {"2", "4"}


@pytest.mark.parametrize(
    ("version", "form"),
    [("xenium-1.0.1", "parquet"), ("xenium-1.7.6.0", "csv"), ("xenium-2.0.0.10", "parquet"), ("xenium-3.0.0.15", "csv.gz"), ("xenium-4.0.0.0", "parquet")],
)
def test_subset_of_a_xenium_region(tmp_path: Path, version: str, form: str) -> None:
    raw, part, pixel = tmp_path / "raw", tmp_path / "part", 0.2125
    truth = fx.xenium(raw, version=version, height=800, width=900, n=6000)
    ids = list(truth["rings"])
    pd.DataFrame({"cell_id": ids, "x_centroid": [35 * pixel, 135 * pixel], "y_centroid": 60 * pixel}).to_parquet(raw / "cells.parquet")
    if form != "parquet":
        for path in sorted(raw.glob("*.parquet")):
            table = truth["transcripts"] if path.stem == "transcripts" else pd.read_parquet(path)
            table.to_csv(path.with_suffix(f".{form}"), index=False)
            path.unlink()
    x0, y0, x1, y1 = 101, 31, 801, 643
    region = ",".join(f"{(v + 0.5) * pixel}" for v in (x0, y0, x1, y1))
    subset.run(raw=raw, platform="xenium", out=part, region=region)
    assert sorted(p.relative_to(part) for p in part.rglob("*")) == sorted(p.relative_to(raw) for p in raw.rglob("*"))
    convert.run(raw=part, sample="s", platform="xenium", out=tmp_path / "out")
    sample = Sample.read(tmp_path / "out" / "sample.json")
    image = spatial.image_level(tmp_path / "out" / "s.zarr")[:]
    assert [s.name for s in sample.stains] == list(truth["images"])
    for channel, stain in zip(image, sample.stains, strict=True):
        np.testing.assert_array_equal(channel, truth["images"][stain.name][y0:y1, x0:x1])
    whole, there = truth["transcripts"], (truth["px"] >= x0) & (truth["px"] < x1) & (truth["py"] >= y0) & (truth["py"] < y1)
    whole, px, py = whole[there], truth["px"][there] - x0, truth["py"][there] - y0
    good = (whole["qv"] >= 20).to_numpy()
    points = pd.concat([pd.read_parquet(p) for p in spatial.transcript_parts(tmp_path / "out" / "s.zarr")]).sort_values("transcript_id")
    assert points["transcript_id"].tolist() == np.flatnonzero(good).tolist() and good.sum() > 1000
    assert points["gene"].astype(str).tolist() == whole["feature_name"][good].tolist()
    np.testing.assert_allclose(points[["x", "y"]] / pixel, np.column_stack([px, py])[good], atol=1e-3)
    cells = gpd.read_parquet(tmp_path / "out" / "vendor_cells.parquet").set_index("cell_id")
    (far,) = cells.index
    assert far == str(ids[1]), "the middle of the other lies outside"
    np.testing.assert_allclose(cells.loc[far].geometry.bounds, np.array([120 - x0, 40 - y0, 150 - x0, 80 - y0]) * pixel, atol=1e-5)
    (table,) = part.glob("cells.*")
    written = pd.read_parquet(table) if form == "parquet" else pd.read_csv(table)
    np.testing.assert_allclose(written[["x_centroid", "y_centroid"]], [[(135 - x0) * pixel, (60 - y0) * pixel]])
    first = next(p for p in sorted(part.rglob("*.ome.tif")))
    with tifffile.TiffFile(first) as tif:
        assert tif.pages[0].compression.name in ("JPEG2000", "JPEG_2000_LOSSY")
        assert [level.shape for level in tif.pages[0].pages] == [(306, 350)]


def test_subset_says_what_is_wrong_and_leaves_nothing(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "raw")
    for arguments, message in (
        ({"platform": "merscope"}, "--region: merscope needs it"),
        ({"platform": "merscope", "region": "0,0,1,1", "fovs": "1"}, "--fovs: merscope does not take it"),
        ({"platform": "merscope", "region": "0,0,1,1"}, "less than 16 pixels"),
        ({"platform": "merscope", "region": "0,0,1"}, "four numbers"),
        ({"platform": "xenium", "fovs": "1"}, "--region: xenium needs it"),
        ({"platform": "visium", "region": "0,0,1,1"}, "cannot be cut; those of merscope, cosmx, xenium can"),
    ):
        with pytest.raises(InputError, match=message):
            subset.run(raw=tmp_path / "raw", out=tmp_path / "part", **arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def _region(truth: dict) -> str:
    return ",".join(map(str, apply_affine(np.linalg.inv(truth["matrix"]), np.array([[15, 22], [105, 182]])).ravel()))


@pytest.mark.parametrize("table", ["csv", "csv.gz"])
def test_cut_tables_look_as_those_of_the_vendor(tmp_path: Path, table: str) -> None:
    truth = fx.merscope(tmp_path / "raw")
    lines = (tmp_path / "raw" / "detected_transcripts.csv").read_text().splitlines()
    frame = truth["transcripts"]
    inside = ((truth["px"] > 20) & (truth["px"] < 100) & (truth["py"] > 30) & (truth["py"] < 180)).nonzero()[0]
    assert len(inside) > 20
    # What must be quoted, and what looks like a missing value.
    for row, gene in zip(inside[:4], ('"HLA-A,B"', '"the ""A"" gene"', "NA", ""), strict=True):
        cells = lines[row + 1].split(",")
        cells[list(frame.columns).index("gene")] = gene
        lines[row + 1] = ",".join(cells)
    text = "\n".join(lines) + "\n"
    path = tmp_path / "raw" / f"detected_transcripts.{table}"
    (tmp_path / "raw" / "detected_transcripts.csv").unlink()
    path.write_bytes(gzip.compress(text.encode()) if table == "csv.gz" else text.encode())
    (tmp_path / "raw" / "cell_by_gene.csv").write_text("cell,Actb,Gad1\n1878901234567890000,1,0\n1878901234567890001,NaN,\n1878901234567890004,5,5\n")
    subset.run(raw=tmp_path / "raw", platform="merscope", out=tmp_path / "part", region=_region(truth))
    written = tmp_path / "part" / path.name
    cut = (gzip.decompress(written.read_bytes()) if table == "csv.gz" else written.read_bytes()).decode().splitlines()
    assert cut[0] == lines[0] and [line for line in lines if line in set(cut)] == cut, "rows are those of the source, letter by letter"
    assert {lines[row + 1] for row in inside} <= set(cut)
    counts = (tmp_path / "part" / "cell_by_gene.csv").read_text().splitlines()
    assert counts == ["cell,Actb,Gad1", "1878901234567890000,1,0", "1878901234567890001,NaN,"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("detected_transcripts.csv", None, "a value of the column global_x cannot be read .*here.* Correct the table"),
        ("cell_by_gene.csv", b"", "is empty. Was it copied in full"),
        ("cell_by_gene.csv", b"\xff\xfe\x00\x01\n\x80", "is not a text table"),
        ("cell_by_gene.csv", b"cell,Actb\n1,2\n\xff\xfe,3\n", "cannot be read"),
        ("cell_by_gene.csv", b"cell,Actb,Actb\n1,2,3\n", "has the columns 'Actb' more than once"),
        ("cell_metadata.csv", b"EntityID,fov\n1,2\n3\n", "wrong number of columns"),
    ],
)
def test_subset_tells_a_table_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    truth = fx.merscope(tmp_path / "raw")
    path = tmp_path / "raw" / name
    if content is None:
        frame = pd.read_csv(path, dtype=str)
        frame.loc[frame.index[-1], "global_x"] = "here"
        frame.rename(columns={"Unnamed: 0": ""}).to_csv(path, index=False)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: .*{message}") as error:
        subset.run(raw=tmp_path / "raw", platform="merscope", out=tmp_path / "part", region=_region(truth))
    assert len(error.value.problems) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_explain_knows_every_parameter_column_check_and_flag() -> None:
    from istseg.artifacts.metrics import FLAGS
    from istseg.report.checks import limits

    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    names = [name for group in schema["$defs"].values() for name in group["properties"]]
    columns = json.loads((ROOT / "assets" / "schema_input.json").read_text())["items"]["properties"]
    for name in [*names, *columns, *limits(), *FLAGS]:
        assert name in explain.run(name=name)
    assert explain.run(name="--tile-um") == explain.run(name="tile_um")
    assert "What to do: " in explain.run(name="saturation")
    assert explain.run(name="z_planes").count("\n") == 1, "a parameter and a column"
    with pytest.raises(InputError, match="did you mean saturation"):
        explain.run(name="saturatoin")
    assert set(explain.FLAG_MEANINGS) == set(FLAGS)


def test_explain_knows_every_column_of_the_cells(exported) -> None:
    columns = list(exported.table.obs.columns)
    assert {"area_um2", "background_fraction", "DAPI_mean", "Cellbound1_mean"} <= set(columns)
    for name in columns:
        assert f"{'<stain>_mean' if name.endswith('_mean') else name}, column of obs in counts.h5ad: " in explain.run(name=name)


def test_explain_on_the_command_line() -> None:
    done = CliRunner().invoke(app, ["explain", "contain"])
    assert done.exit_code == 0 and done.stdout.startswith("--contain, parameter of the pipeline")
    for pasted in ("--tile_um", "--tile-um"):
        assert CliRunner().invoke(app, ["explain", pasted]).stdout.startswith("--tile_um, parameter of the pipeline")
    with pytest.raises(InputError, match="nextflow_schema.json"):
        explain.run(name="tile_um", root=Path("/nowhere"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_in_bash(tmp_path: Path) -> None:
    """As a user gets it: installed into a home, then asked as bash asks."""
    env = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    installed = subprocess.run(["istseg", "--install-completion", "bash"], env=env, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    ask = 'source "$HOME/.bashrc"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _istseg_completion istseg; echo "${COMPREPLY[@]}"'
    for words, expected in {
        ("istseg", "ex"): {"explain", "export"},
        ("istseg", "export", "--f"): {"--formats"},
        ("istseg", "explain", "qc_"): {"qc_flag", "qc_reason", "qc_thresholds"},
    }.items():
        done = subprocess.run(["bash", "-c", ask, "bash", *words], env=env, check=True, capture_output=True, text=True)
        assert set(done.stdout.split()) == expected, words


def test_view_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no SpatialData"):
        view.run(folder=tmp_path)
    store = tmp_path / "exports" / "s.zarr"
    (store / "images" / "stains").mkdir(parents=True)
    with pytest.raises(InputError, match="s.zarr: has no points/transcripts and no tables/table; give a store"):
        view.run(folder=tmp_path)
    for part in ("points/transcripts", "tables/table"):
        (store / part).mkdir(parents=True)
    assert view.store_of(tmp_path) == view.store_of(tmp_path / "exports" / "s.zarr") == tmp_path / "exports" / "s.zarr"
    with pytest.raises(IstsegError, match="^napari and napari-spatialdata .*is not installed .*--python napari/bin/python"):
        view.run(folder=tmp_path)
    with pytest.raises(InputError, match="nowhere: cannot be started"):
        view.run(folder=tmp_path, python=tmp_path / "nowhere")
