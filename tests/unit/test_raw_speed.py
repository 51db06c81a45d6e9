"""What makes reading raw data fast gives what the plain way gives: threads, parts of tables, pieces of pictures."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import tifffile

from istseg.artifacts import spatial
from istseg.errors import InputError
from istseg.raw import intensity, mosaics, tables, tiffs
from istseg.raw.intensity import Histograms

COLUMNS = {"x": pa.float64(), "gene": pa.string()}


def picture(height: int, width: int, seed: int, largest: int = 65535) -> np.ndarray:
    """Noise with areas of 0, other ones in every picture."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, largest + 1, (height, width)).astype(np.uint16)
    values[rng.integers(height) :, rng.integers(width) :] = 0
    return values


@pytest.mark.parametrize(
    "layout", [{}, {"byteorder": ">"}, {"rowsperstrip": 7}, {"tile": (32, 48)}, {"tile": (32, 48), "compression": "lzw"}, {"bigtiff": True}], ids=str
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_strips_are_the_maximum_of_the_planes_in_every_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: dict, dtype: str) -> None:
    monkeypatch.setattr(mosaics, "_PIECE_BYTES", 3000)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    planes = [[picture(205, 131, 10 * stain + z, np.iinfo(dtype).max).astype(dtype) for z in range(n)] for stain, n in enumerate((1, 3))]
    stacks = []
    for stain, stack in enumerate(planes):
        paths = [tmp_path / f"{stain}_{z}.tif" for z in range(len(stack))]
        for path, plane in zip(paths, stack, strict=True):
            tifffile.imwrite(path, plane, **layout)
        problems: list[str] = []
        stacks.append([tiffs.inspect(path, problems)[0] for path in paths])
        assert not problems
    found = []
    for strip in mosaics.strips(stacks, 64):
        found.append(strip.copy())
        time.sleep(0.01)
        np.testing.assert_array_equal(strip, found[-1], err_msg="the next strip is read into other memory")
    assert [strip.shape for strip in found] == [(2, 64, 131)] * 3 + [(2, 13, 131)] and found[0].dtype == np.uint16
    np.testing.assert_array_equal(np.concatenate(found, axis=1), [np.max(stack, axis=0) for stack in planes])


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(300, 200, 0))
    strips = mosaics.strips([tiffs.inspect(path, [])], 100)
    next(strips)
    with open(path, "r+b") as stream:
        stream.truncate(60_000)
    with pytest.raises(InputError, match=r"a\.tif: rows .* cannot be decoded .* Copy it again"):
        list(strips)


def test_histograms_count_the_imaged_pixels_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intensity, "_PIECE", 5000)
    strips = [np.stack([picture(90, 171, 5 * i + c) for c in range(3)]) for i in range(4)]
    strips[1][:] = 0
    strips[2][0] = 7  # no pixel of it is 0 in every stain
    strips[3][:, :40] = 0
    plain, threaded = Histograms(3), Histograms(3)
    with ThreadPoolExecutor(3) as threads:
        for strip in strips:
            plain.add(strip)
            threaded.finish(threaded.start(strip, threads))
    pixels = np.concatenate([s.reshape(3, -1) for s in strips], axis=1)
    imaged = pixels[:, pixels.any(axis=0)]
    expected = [np.bincount(values, minlength=1 << 16) for values in imaged]
    np.testing.assert_array_equal(plain.counts, expected)
    np.testing.assert_array_equal(threaded.counts, expected)
    assert plain.n_pixels == imaged.shape[1]


@pytest.mark.parametrize("shape", [(2, 1027, 1301), (1, 513, 5), (1, 3, 1025), (3, 512, 512)], ids=str)
def test_every_level_is_the_mean_of_the_one_before_for_any_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple) -> None:
    image = np.stack([picture(*shape[1:], c) for c in range(shape[0])])
    files = []
    for n in ("1", "4"):
        monkeypatch.setenv("OMP_NUM_THREADS", n)
        writer = spatial.ImageWriter(tmp_path / n, [str(c) for c in range(shape[0])], *shape[1:], np.eye(3))
        for y in range(0, shape[1], spatial.CHUNK):
            writer.write(image[:, y : y + spatial.CHUNK].copy())
        writer.close()
        files.append({p.relative_to(tmp_path / n): p.read_bytes() for p in sorted((tmp_path / n).rglob("*")) if p.is_file()})
    assert files[0] == files[1]
    expected = image
    for level in range(spatial.n_levels(tmp_path / "1")):
        stored = spatial.image_level(tmp_path / "1", level)
        np.testing.assert_array_equal(stored[:], expected)
        h, w = expected.shape[1] // 2, expected.shape[2] // 2
        if h and w:
            expected = np.stack([cv2.resize(np.ascontiguousarray(p[: 2 * h, : 2 * w]), (w, h), interpolation=cv2.INTER_AREA) for p in expected])
    assert level > 0


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    writer = spatial.ImageWriter(tmp_path, ["a"], 700, 600, np.eye(3))
    writer.write(np.ones((1, 512, 600), np.uint16))
    with pytest.raises(ValueError, match="512 of 700 rows"):
        writer.close()


def rows(path: Path, n: int, end: str = "\n", last: str = "\n") -> Path:
    lines = ["x,gene,other", *(f"{i / 7},{'None' if i % 50 == 0 else f'G{i % 13}'},{'y' * (i % 9)}" for i in range(n))]
    path.write_bytes((end.join(lines) + last).encode())
    return path


@pytest.mark.parametrize(("end", "last"), [("\n", "\n"), ("\r\n", "\r\n"), ("\n", ""), ("\n\n", "\n"), ("\r", "\r")], ids=repr)
def test_tables_in_parts_are_the_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, last: str) -> None:
    path = rows(tmp_path / "t.csv", 3000, end, last)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    whole = pa.concat_tables(tables.stream(path, COLUMNS))
    assert whole.num_rows == 3000 and whole["gene"].null_count == 60
    monkeypatch.setattr(tables, "PART_BYTES", 1000)
    assert (len(tables._part_ends(path)) > 20) is ("\n" in end)
    assert pa.concat_tables(tables.stream(path, COLUMNS)).equals(whole)


@pytest.mark.parametrize("wrong", ["1.5,G1", "1.5,G1,a,b", "1.5x,G1,a", "1.5,\xff,a"])
def test_errors_of_a_part_are_those_of_the_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    path = rows(tmp_path / "t.csv", 3000)
    text = path.read_bytes().split(b"\n")
    text[2000] = wrong.encode("latin-1")
    path.write_bytes(b"\n".join(text))
    said = []
    for size in (1 << 20, 1000):
        monkeypatch.setattr(tables, "PART_BYTES", size)
        with pytest.raises(InputError) as error:
            list(tables.stream(path, COLUMNS))
        said.append(str(error.value))
    assert said[0] == said[1]
