"""Broken samplesheets, parameters and raw folders: each has its message, and the command ends with the code for bad input."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

import raw_fixtures as fx
from istseg import cli
from istseg.errors import EXIT_BAD_INPUT

SCHEMA = Path(__file__).resolve().parents[1] / "nextflow_schema.json"
TRANSFORM = "images/micron_to_mosaic_pixel_transform.csv"


def preflight(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str]:
    """Run the real command line in this process; give exit code and standard error."""
    monkeypatch.setattr("sys.argv", ["istseg", "--quiet", "preflight", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, capsys.readouterr().err


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound folder of each platform; tests break copies of them."""
    root = tmp_path_factory.mktemp("good")
    fx.merscope(root / "merscope", planes=2)
    fx.cosmx(root / "cosmx")
    return root


def text(path: str, content: str) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        (root / path).write_text(content)

    return do


def remove(pattern: str) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        found = list(root.glob(pattern))
        assert found, pattern
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return do


def table(path: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        fx.write_table(change(pd.read_csv(root / path, dtype={"cell_id": str})), root / path)

    return do


def image(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        path = next(root.rglob(name))
        pixels = tifffile.imread(path)
        changed = change(pixels)
        tifffile.imwrite(path, changed, metadata=None, photometric="rgb" if changed.shape[-1] == 3 else "minisblack")

    return do


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        path = next(root.rglob(name))
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return do


def append(path: str, line: str) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        with open(root / path, "a") as stream:
            stream.write(line)

    return do


def link_loop(root: Path) -> None:
    shutil.rmtree(root / "images")
    (root / "images").symlink_to(root / "images2")
    (root / "images2").symlink_to(root / "images")


def two_regions(root: Path) -> None:
    for name in ("region_0", "region_1"):
        shutil.copytree(root / "images", root / name / "images")
    shutil.rmtree(root / "images")
    (root / "detected_transcripts.csv").unlink()


def second_table(root: Path) -> None:
    (root / "detected_transcripts.csv.gz").write_bytes(gzip.compress((root / "detected_transcripts.csv").read_bytes()))


def cut_gzip(root: Path) -> None:
    packed = gzip.compress((root / "detected_transcripts.csv").read_bytes())
    (root / "detected_transcripts.csv.gz").write_bytes(packed[: len(packed) // 2])
    (root / "detected_transcripts.csv").unlink()


def other_labels(root: Path) -> None:
    """Labels of another segmentation: the numbers no longer fit."""
    for path in root.rglob("CellLabels*"):
        labels = tifffile.imread(path)
        tifffile.imwrite(path, np.where(labels > 0, labels % 6 + 1, 0).astype(np.uint16), compression="zlib")


def second_slide(root: Path) -> None:
    shutil.copy(root / "S1_tx_file.csv.gz", root / "S2_tx_file.csv.gz")


def no_pixel_size(root: Path) -> None:
    path = root / "S1_fov_positions_file.csv.gz"
    fx.write_table(pd.read_csv(path)[["FOV", "x_global_px", "y_global_px"]], path)
    for picture in root.rglob("*.TIF"):
        with tifffile.TiffFile(picture) as tif:
            meta, pages = json.loads(tif.pages[0].description), tif.asarray()
        del meta["PixelSize_um"]
        with tifffile.TiffWriter(picture) as out:
            for i, page in enumerate(pages):
                out.write(page, description=json.dumps(meta) if i == 0 else None, metadata=None)


def float_cells(root: Path) -> None:
    frame = pd.read_csv(root / "detected_transcripts.csv")
    frame["cell_id"] = frame["cell_id"].astype(float)
    frame.to_parquet(root / "detected_transcripts.parquet")
    (root / "detected_transcripts.csv").unlink()


def header_says(name: str, tag: int, value: int) -> Callable[[Path], None]:
    """Write another value into the first directory of a TIFF: a header of a few bytes may ask for any amount of memory."""

    def do(root: Path) -> None:
        path = next(root.rglob(name))
        with tifffile.TiffFile(path) as tif:
            at, order = tif.pages[0].tags[tag].valueoffset, tif.byteorder
        changed = bytearray(path.read_bytes())
        struct.pack_into(f"{order}I", changed, at, value)
        path.write_bytes(changed)

    return do


def as_tiles(name: str) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        path = next(root.rglob(name))
        tifffile.imwrite(path, tifffile.imread(path), tile=(64, 64), compression="zlib", metadata=None)

    return do


def circle(name: str) -> Callable[[Path], None]:
    """The last directory of a TIFF points at the first one."""

    def do(root: Path) -> None:
        path = next(root.rglob(name))
        with tifffile.TiffFile(path) as tif:
            first, last = tif.pages[0].offset, tif.pages[-1].offset
            at = last + 2 + 12 * len(tif.pages[len(tif.pages) - 1].aspage().tags)
        changed = bytearray(path.read_bytes())
        struct.pack_into("<I", changed, at, first)
        path.write_bytes(changed)

    return do


def genes(path: str, name: str) -> Callable[[Path], None]:
    """Every row has this gene."""
    return table(path, lambda t: t.assign(**{"gene" if "gene" in t else "target": name}))


def pipe(path: str) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        (root / path).unlink(missing_ok=True)
        os.mkfifo(root / path)

    return do


def pages_of_two_sizes(root: Path) -> None:
    path = next(root.rglob("*_F00002.TIF"))
    pages = tifffile.imread(path)
    with tifffile.TiffWriter(path) as out:
        for i, page in enumerate(pages):
            out.write(page[i * 4 :], metadata=None)


def far_away(root: Path) -> None:
    """One position, and the transcripts' global coordinates with it."""
    path = root / "S1_fov_positions_file.csv.gz"
    fx.write_table(pd.read_csv(path).assign(x_global_px=lambda t: t["x_global_px"] + 1e10 * (t["FOV"] == 2), x_global_mm=np.nan, y_global_mm=np.nan), path)
    path = root / "S1_tx_file.csv.gz"
    fx.write_table(pd.read_csv(path).assign(x_global_px=lambda t: t["x_global_px"] + 1e10 * (t["fov"] == 2)), path)


def broken_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[12:40] = b"\xff" * 28
    path.write_bytes(content)


def loop_in_folder(root: Path) -> None:
    """A folder that is linked to from inside itself is no harm; a file that links to itself is."""
    (root / "CellStatsDir" / "again").symlink_to(root, target_is_directory=True)
    path = next(root.rglob("*_F00003.TIF"))
    path.unlink()
    path.symlink_to(path)


M, C = "merscope", "cosmx"
RAW = {
    "nothing of the instrument": (M, lambda r: [remove("*")(r), text("notes.txt", "x")(r)], "is not a MERSCOPE region"),
    "several regions": (M, two_regions, "holds several regions (region_0, region_1)"),
    "no images": (M, remove("images/mosaic*"), "holds no image named mosaic_<stain>_z<plane>.tif"),
    "no image folder": (M, remove("images"), "A region needs its folder of mosaic images"),
    "links in a loop": (M, link_loop, "cannot be read"),
    "no transform": (M, remove(TRANSFORM), "is never assumed"),
    "transform with a rotation": (M, text(TRANSFORM, "9.2 0.5 0\n-0.5 9.2 0\n0 0 1"), "contains a rotation or shear"),
    "transform with a flip": (M, text(TRANSFORM, "9.2 0 0\n0 -9.2 0\n0 0 1"), "contains a flip or a zero scale"),
    "transform of two rows": (M, text(TRANSFORM, "9.2 0 0\n0 9.2 0\n"), "3 x 3 finite numbers"),
    "transform with words": (M, text(TRANSFORM, "a b c\nd e f\n0 0 1"), "is not a matrix of 3 x 3 numbers"),
    "transform in pixels per nm": (M, text(TRANSFORM, "0.0092 0 0\n0 0.0092 0\n0 0 1"), "is not that of an image"),
    "transform of another region": (M, text(TRANSFORM, "9.2 0 -90000\n0 9.2 -90000\n0 0 1"), "lie inside the image"),
    "no transcripts": (M, remove("detected_transcripts.csv"), "has no transcript table"),
    "two transcript tables": (M, second_table, "has several transcript tables"),
    "empty transcript table": (M, text("detected_transcripts.csv", ""), "is empty"),
    "transcript table of one header": (M, table("detected_transcripts.csv", lambda t: t.iloc[:0]), "has no transcripts"),
    "semicolons": (M, text("detected_transcripts.csv", "gene;global_x;global_y\nA;1;2\n"), "separated by semicolons"),
    "no gene column": (M, table("detected_transcripts.csv", lambda t: t.rename(columns={"gene": "name"})), "lacks the columns gene"),
    "words for coordinates": (M, table("detected_transcripts.csv", lambda t: t.assign(global_x="left")), "a value cannot be read"),
    "coordinates missing": (M, table("detected_transcripts.csv", lambda t: t.assign(global_x=t["global_x"].where(t.index > 50))), "no usable coordinates"),
    "coordinates without sense": (M, table("detected_transcripts.csv", lambda t: t.assign(global_y=1e12)), "no usable coordinates"),
    "only control probes": (M, table("detected_transcripts.csv", lambda t: t.assign(gene="Blank-7")), "there are no genes"),
    "row cut off": (M, append("detected_transcripts.csv", "1,2,3\n"), "wrong number of columns"),
    "gzip cut off": (M, cut_gzip, "damaged or cut off"),
    "ids as floating point": (M, float_cells, "long ids lose digits"),
    "binary instead of a table": (M, lambda r: (r / "detected_transcripts.csv").write_bytes(b"\xff\xfe\x00\x01" * 50), "is not a text table"),
    "image cut off": (M, cut("mosaic_DAPI_z1.tif", 0.5), "is cut off"),
    "image of text": (M, text("images/mosaic_DAPI_z0.tif", "not an image"), "cannot be read as TIFF"),
    "image empty": (M, text("images/mosaic_DAPI_z0.tif", ""), "cannot be read as TIFF"),
    "image of floats": (M, image("mosaic_PolyT_z0.tif", lambda a: a.astype(np.float32)), "the pixels are float32"),
    "image in colour": (M, image("mosaic_PolyT_z0.tif", lambda a: np.stack([a] * 3, -1)), "one grey-value plane"),
    "images of two sizes": (M, image("mosaic_PolyT_z0.tif", lambda a: a[:-9]), "the mosaics differ in size"),
    "image twice": (M, lambda r: shutil.copy(r / "images/mosaic_DAPI_z0.tif", r / "images/mosaic_DAPI_z0.tiff"), "is a second image of stain DAPI, plane 0"),
    "image header with a circle": (M, circle("mosaic_DAPI_z0.tif"), "point at each other in a circle"),
    "image header of 300,000 rows": (M, header_says("mosaic_DAPI_z0.tif", 257, 300_000), "is cut off"),
    "image header of a million columns": (M, header_says("mosaic_DAPI_z0.tif", 256, 1_000_000), "more than 524,288 on a side"),
    "image header of 400,000 columns of tiles": (
        M,
        lambda r: [as_tiles("mosaic_DAPI_z0.tif")(r), header_says("mosaic_DAPI_z0.tif", 256, 400_000)(r)],
        "pixels need 31,250 strips or tiles, it has 35",
    ),
    "image header of tiles of 30 GB": (
        M,
        lambda r: [as_tiles("mosaic_DAPI_z0.tif")(r), *(header_says("mosaic_DAPI_z0.tif", tag, 131_072)(r) for tag in (256, 257, 322, 323))],
        "strips or tiles",
    ),
    "gene with a NUL byte": (M, genes("detected_transcripts.csv", "Ac\0tb"), "holds control characters"),
    "genes of a text that never ends": (M, genes("detected_transcripts.csv", "x" * 5000), "a gene's name has 5,000 characters"),
    "coordinate with a NUL byte": (M, table("detected_transcripts.csv", lambda t: t.assign(global_x="1\0002")), "a value cannot be read"),
    "transcripts are a pipe": (M, pipe("detected_transcripts.csv"), "is a pipe, socket or device"),
    "no nucleus stain": (M, remove("images/mosaic_DAPI*"), "no stain is known as a nucleus stain"),
    "manifest of another export": (M, text("images/manifest.json", '{"mosaic_height_pixels": 5, "mosaic_width_pixels": 5}'), "mixes files of two exports"),
    "CosMx without transcripts": (C, remove("S1_tx_file.csv.gz"), "has no transcript table"),
    "CosMx without positions": (C, remove("S1_fov_positions_file.csv.gz"), "has no positions of the fields of view"),
    "CosMx without images": (C, remove("CellStatsDir/Morphology2D"), "has no images"),
    "CosMx with two slides": (C, second_slide, "has several tx tables"),
    "CosMx image links to itself": (C, loop_in_folder, "cannot be read as TIFF"),
    "CosMx image is a pipe": (C, pipe("CellStatsDir/Morphology2D/20240101_S1_F00002.TIF"), "is a pipe, socket or device"),
    "CosMx pages of two sizes": (C, pages_of_two_sizes, "its pages differ in size"),
    "CosMx field of view a kilometre away": (C, far_away, "which no slide has"),
    "CosMx number of a field of view": (
        C,
        table("S1_fov_positions_file.csv.gz", lambda t: t.assign(FOV=["inf", *t["FOV"][1:]])),
        "the position is not a number",
    ),
    "CosMx gzip with broken bytes": (C, lambda r: broken_bytes(r / "S1_fov_positions_file.csv.gz"), "S1_fov_positions_file.csv.gz: cannot be read"),
    "CosMx labels of another segmentation": (C, other_labels, "do not fit together under any flip"),
    "CosMx without pixel size": (C, no_pixel_size, "no file says the pixel size"),
    "CosMx image cut off": (C, cut("*_F00003.TIF", 0.6), "cut off"),
    "CosMx images of two sizes": (C, image("*_F00002.TIF", lambda a: a[:, :-8]), "differ in size"),
    "CosMx images of unlike channels": (C, image("*_F00002.TIF", lambda a: a[:2]), "number of channels"),
    "CosMx without local coordinates": (C, table("S1_tx_file.csv.gz", lambda t: t.drop(columns="x_local_px")), "lacks the columns x_local_px"),
    "CosMx positions without numbers": (C, table("S1_fov_positions_file.csv.gz", lambda t: t.assign(x_global_px="a")), "the position is not a number"),
    "CosMx positions of other columns": (C, table("S1_fov_positions_file.csv.gz", lambda t: t[["FOV"]]), "lacks the columns fov, x_global_px"),
    "CosMx global not local": (C, table("S1_tx_file.csv.gz", lambda t: t.assign(y_global_px=t["y_local_px"] * 3)), "plus or minus an offset"),
    "CosMx tables of two exports": (
        C,
        table("S1_fov_positions_file.csv.gz", lambda t: t.assign(x_global_px=t["x_global_px"] + 50 * t["FOV"], x_global_mm=np.nan, y_global_mm=np.nan)),
        "by amounts that differ",
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_broken_raw_folder(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    platform, damage, message = RAW[name]
    shutil.copytree(good / platform, tmp_path / "raw")
    damage(tmp_path / "raw")
    (tmp_path / "sheet.csv").write_text(f"sample,platform,path\ns1,{platform},raw\n")
    code, err = preflight(capsys, monkeypatch, "--samplesheet", tmp_path / "sheet.csv", "--out", tmp_path / "out")
    assert code == EXIT_BAD_INPUT
    assert message in err, err
    assert all(line.startswith("ERROR: s1: ") for line in err.strip().splitlines()), "every problem names its sample, and there is no traceback"
    assert not (tmp_path / "out" / "preflight.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(good / "merscope", tmp_path / "raw")
    (tmp_path / "raw" / "images").chmod(0)
    (tmp_path / "sheet.csv").write_text("sample,platform,path\ns1,merscope,raw\n")
    code, err = preflight(capsys, monkeypatch, "--samplesheet", tmp_path / "sheet.csv", "--out", tmp_path / "out")
    (tmp_path / "raw" / "images").chmod(0o755)
    assert code == EXIT_BAD_INPUT
    assert "cannot be read" in err


OPTIONS = {
    "nucleus stain that is not there": (
        "merscope",
        "nucleus_stain",
        "Hoechst9",
        "nucleus stain 'Hoechst9' is not there; the stains are: Cellbound1, DAPI, PolyT",
    ),
    "membrane stain that is not there": ("merscope", "membrane_stains", "PolyT;Cellbound7", "membrane stain 'Cellbound7' is not there"),
    "one stain in two roles": ("merscope", "membrane_stains", "DAPI", "is both nucleus and membrane stain"),
    "plane that is not there": ("merscope", "z_planes", "5", "stain DAPI has no plane 5; it has 0, 1"),
    "field of view that is not there": ("cosmx", "fovs", "1-2;77", "fovs 77 are not there; there are 1-4"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_do_not_fit(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    platform, column, value, message = OPTIONS[name]
    (tmp_path / "sheet.csv").write_text(f"sample,platform,path,{column}\ns1,{platform},{good / platform},{value}\n")
    code, err = preflight(capsys, monkeypatch, "--samplesheet", tmp_path / "sheet.csv", "--out", tmp_path / "out")
    assert code == EXIT_BAD_INPUT
    assert message in err, err


HEAD = "sample,platform,path"
SHEETS = {
    "empty": ("", "is empty"),
    "header only": (f"{HEAD}\n", "has a header but no sample"),
    "binary": (b"\xff\xfe\x00s", "is not text in UTF-8"),
    "semicolons": ("sample;platform;path\na;merscope;x\n", "separated by semicolons"),
    "column missing": ("sample,platform\na,merscope\n", "lacks the column path"),
    "column unknown": (f"{HEAD},z_plane\na,merscope,x,1\n", "no column 'z_plane'; did you mean z_planes?"),
    "column twice": (f"{HEAD},path\na,merscope,x,y\n", "has the column 'path' 2 times"),
    "name with a blank": (f"{HEAD}\na b,merscope,x\n", "line 2: the sample name 'a b' is not allowed"),
    "name with a slash": (f"{HEAD}\n../a,merscope,x\n", "line 2: the sample name '../a' is not allowed"),
    "name of a results folder": (f"{HEAD}\ncohort,merscope,x\n", "none of the names of results: cohort, "),
    "names twice": (f"{HEAD}\nA,merscope,x\na,merscope,y\n", "lines 2, 3: the sample name 'A' is there 2 times"),
    "platform unknown": (f"{HEAD}\na,merscop,x\n", "did you mean merscope?"),
    "path missing": (f"{HEAD}\na,merscope,\n", "line 2: has no path"),
    "folder missing": (f"{HEAD}\na,merscope,not_here\n", "no such folder"),
    "path of a file": (f"{HEAD}\na,merscope,sheet.csv\n", "is a file"),
    "value too many": (f"{HEAD}\na,merscope,x,y\n", "has 4 values, the header has 3 columns"),
    "planes backwards": (f"{HEAD},z_planes\na,merscope,x,5-1\n", "must not be above the last"),
    "planes of words": (f"{HEAD},z_planes\na,merscope,x,best\n", "z_planes 'best'"),
    "fovs of words": (f"{HEAD},fovs\na,cosmx,x,1-x\n", "'1-x' is not a field of view"),
    "fovs of MERSCOPE": (f"{HEAD},fovs\na,merscope,x,1\n", "fovs is only for cosmx"),
    "pixel size of words": (f"{HEAD},pixel_size_um\na,cosmx,x,big\n", "pixel_size_um 'big'"),
    "pixel size in nm": (f"{HEAD},pixel_size_um\na,cosmx,x,120.28\n", "between 0.01 and 5"),
    "name with a command": (f"{HEAD}\na;touch x,merscope,x\n", "line 2: the sample name 'a;touch x' is not allowed"),
    "name with a substitution": (f"{HEAD}\n$(id),merscope,x\n", "line 2: the sample name '$(id)' is not allowed"),
    "name of a parent": (f"{HEAD}\n..,merscope,x\n", "line 2: the sample name '..' is not allowed"),
    "quote that never ends": (f'{HEAD}\na,merscope,"x\n' + "y" * 200_000, "cannot be read as CSV"),
    "plane of 5,000 digits": (f"{HEAD},z_planes\na,merscope,x,{'9' * 5000}\n", "z_planes"),
    "stain with a quote": (f"{HEAD},nucleus_stain\na,merscope,x,DAPI'\n", "holds characters that no stain has"),
}


@pytest.mark.parametrize("name", SHEETS)
def test_broken_samplesheet(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content, message = SHEETS[name]
    (tmp_path / "sheet.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, err = preflight(capsys, monkeypatch, "--samplesheet", tmp_path / "sheet.csv", "--out", tmp_path / "out")
    assert code == EXIT_BAD_INPUT
    assert message in err, err


PARAMS = {
    "unknown": ({"tile_umm": 5}, "--tile_umm: there is no such parameter; did you mean --tile_um?"),
    "camel case": ({"workingUm": 5}, "did you mean --working_um?"),
    "text for a number": ({"tile_um": "750"}, "--tile_um: must be a number, it is '750'"),
    "number for a switch": ({"gpu": 1}, "--gpu: must be true or false"),
    "fraction for a count": ({"epochs": 1.5}, "--epochs: must be a whole number"),
    "too small": ({"contain": 0.2}, "--contain: must be between 0.5 and 1, it is 0.2"),
    "not a choice": ({"teacher": "celpose"}, "did you mean cellpose?"),
    "wrong form": ({"z_planes": "1..5"}, "--z_planes: '1..5' is not of the right form"),
    "teacher without weights": ({"teacher": "cellpose"}, "--nuclei_weights: the teacher cellpose needs it"),
    "untrained network": ({"base_model": "scratch", "finetune": "none"}, "`scratch` is an untrained network"),
    "backbone of a base": ({"backbone": "swin"}, "--backbone: only an untrained network takes it"),
    "RNA input of a base": ({"base_model": "base.safetensors", "rna_input": "learned"}, "--rna_input: weights bring their own"),
    "not a precision": ({"precision": "float"}, "did you mean float32?"),
    "no samplesheet": ({"input": None}, "--input: is missing"),
    "a list": ([1], "must be a JSON object"),
    "not JSON": ("{", "is not valid JSON"),
}


@pytest.mark.parametrize("name", PARAMS)
def test_broken_parameters(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    values, message = PARAMS[name]
    if isinstance(values, dict):
        values = {"input": "sheet.csv", **values}
    (tmp_path / "params.json").write_text(values if isinstance(values, str) else json.dumps(values))
    (tmp_path / "sheet.csv").write_text(f"sample,platform,path\ns1,merscope,{good / 'merscope'}\n")
    arguments = ["--samplesheet", tmp_path / "sheet.csv", "--out", tmp_path / "out", "--params", tmp_path / "params.json", "--schema", SCHEMA]
    code, err = preflight(capsys, monkeypatch, *arguments)
    assert code == EXIT_BAD_INPUT
    assert message in err, err


def test_everything_wrong_is_told_at_once(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(good / "merscope", tmp_path / "raw")
    (tmp_path / "raw" / TRANSFORM).unlink()
    (tmp_path / "raw" / "images" / "mosaic_DAPI_z0.tif").write_text("")
    (tmp_path / "sheet.csv").write_text(
        f"sample,platform,path,z_planes\nbad name,merscope,raw,\nx,merscope,raw,\ny,cosmx,nowhere,\nz,merscope,{good / 'merscope'},9\n"
    )
    (tmp_path / "params.json").write_text('{"input": "sheet.csv", "gpu": "yes", "tile_size": 3}')
    arguments = [
        "--samplesheet",
        tmp_path / "sheet.csv",
        "--out",
        tmp_path / "out",
        "--params",
        tmp_path / "params.json",
        "--schema",
        SCHEMA,
        "--device",
        "tpu",
    ]
    code, err = preflight(capsys, monkeypatch, *arguments, "--raw", "q=/somewhere")
    assert code == EXIT_BAD_INPUT
    for part in ("--gpu", "--tile_size", "line 2", "x: ", "is never assumed", "cannot be read as TIFF", "y: ", "z: ", "no plane 9", "--device tpu"):
        assert part in err, f"{part} is not in\n{err}"


def test_the_sound_folders_pass(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders that the tests above break are sound before."""
    (tmp_path / "sheet.csv").write_text(f"sample,platform,path\na,merscope,{good / 'merscope'}\nb,cosmx,{good / 'cosmx'}\n")
    code, err = preflight(capsys, monkeypatch, "--samplesheet", tmp_path / "sheet.csv", "--out", tmp_path / "out")
    assert (code, "ERROR" in err) == (0, False)
    assert (tmp_path / "out" / "preflight.json").exists()


def test_convert_refuses_what_only_a_full_read_shows(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(good / "merscope", tmp_path / "raw")
    for path in (tmp_path / "raw" / "images").glob("mosaic*"):
        tifffile.imwrite(path, np.zeros_like(tifffile.imread(path)))
    monkeypatch.setattr(
        "sys.argv", ["istseg", "convert", "--raw", str(tmp_path / "raw"), "--sample", "s", "--platform", "merscope", "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == EXIT_BAD_INPUT
    assert "all images are empty" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
