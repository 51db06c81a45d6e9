"""tile: what is in the tiles, what is skipped, what is refused; bounded memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tissue_fixtures as made
from istseg.artifacts.sample import Sample
from istseg.artifacts.tiles import Tile, TileIndex
from istseg.errors import InputError


@pytest.fixture(scope="module")
def strip(tmp_path_factory):
    """A wide sample without tissue in its left third, cut into single windows and into one tile."""
    folder = tmp_path_factory.mktemp("strip")
    sheet = made.make_sheet(folder, 80, 460, pixel_um=0.2, tissue=(0.4, 1.0))
    return sheet, made.cut(sheet, folder / "small", tile_um=90), made.cut(sheet, folder / "large")


def test_tiles_cover_the_tissue_and_the_rest_is_recorded(strip):
    sheet, small, large = strip
    index = TileIndex.read(small[0].parent / "tiles.json")
    grid = index.window_grid
    assert (grid.height, grid.width) == (317, 1819)
    written, skipped = [t["core"] for t in index.tiles], [t["core"] for t in index.skipped]
    assert [t["tile_id"] for t in index.tiles] == [p.name for p in small]
    assert skipped and all(t["reason"] == "no tissue" for t in index.skipped)
    assert sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in written + skipped) == grid.height * grid.width
    whole = Tile.read(large[0])
    windows = [w for p in small for w in Tile.read(p).windows]
    assert sorted(windows) == whole.windows and not whole.ring_windows
    # Every cell, with 24 µm around it, lies in windows with tissue.
    cells = (sheet.centres_um / 0.253 / grid.stride).astype(int)
    assert {tuple(c) for c in cells} <= set(windows)
    assert index.tissue_fraction == pytest.approx(0.62, abs=0.08)
    assert index.tissue_fraction == TileIndex.read(large[0].parent / "tiles.json").tissue_fraction


def test_ring_windows_are_those_of_the_neighbours(strip):
    _, small, large = strip
    tissue = set(Tile.read(large[0]).windows)
    for folder in small:
        tile = Tile.read(folder)
        (gy, gx) = tile.windows[0]
        around = {(y, x) for y in range(gy - 1, gy + 2) for x in range(gx - 1, gx + 2)} - {(gy, gx)}
        assert set(tile.ring_windows) == around & tissue


def test_stains_are_the_same_bits_in_every_tile_and_only_the_networks(strip):
    sheet, small, large = strip
    whole = Tile.read(large[0])
    assert whole.stains == ["DAPI", "Ring", "Cyto"]
    assert whole.ranges == [(s.low, s.high) for s in sheet.sample.stains[:3]]
    reference = whole.raw_stains()
    for folder in small:
        tile = Tile.read(folder)
        y0, x0, y1, x1 = tile.region
        assert np.array_equal(tile.raw_stains(), reference[:, y0:y1, x0:x1])
    # 0.2 → 0.253 µm: the mean brightness stays.
    assert reference.mean((1, 2)) == pytest.approx(sheet.image[:3].mean((1, 2)), rel=0.005)


def test_every_tile_knows_the_genes_of_the_whole_sample(strip):
    sheet, small, large = strip
    points = sheet.transcripts
    counts = points.loc[~points["is_control"], "gene"].value_counts()
    expected = {gene: int(counts[gene]) for gene in sheet.sample.genes}
    assert sum(expected.values()) == (~points["is_control"]).sum() and min(expected.values()) > 0
    assert all(Tile.read(folder).sample_genes() == expected for folder in [*small, *large])
    assert any(made.genes_of(folder) != expected for folder in small)


def test_every_transcript_is_in_the_tiles_that_see_it(strip):
    sheet, small, large = strip
    points = sheet.transcripts
    for folder in [*small, *large]:
        tile = Tile.read(folder)
        at = np.column_stack([points["x"], points["y"]]) - made.SHIFT_UM
        y, x = at[:, 1] / 0.253, at[:, 0] / 0.253
        y0, x0, y1, x1 = tile.region
        expected = points[(y >= y0) & (y < y1) & (x >= x0) & (x < x1)].set_index("transcript_id")
        found = tile.transcripts().set_index("transcript_id")
        assert tile.n_transcripts == len(expected) == len(found) and found.index.is_unique
        joined = found.join(expected, rsuffix="_raw")
        assert (joined["gene"].astype(str) == joined["gene_raw"].astype(str)).all()
        assert (joined["is_control"] == joined["is_control_raw"]).all()
        assert np.allclose(joined["x_wpx"], (joined["x"] - made.SHIFT_UM[0]) / 0.253)
        assert np.allclose(joined["y_wpx"], (joined["y"] - made.SHIFT_UM[1]) / 0.253)
        assert found["gene"].cat.categories.tolist() == made.GENES + made.CONTROLS


def test_the_result_is_deterministic(strip, tmp_path):
    sheet, small, _ = strip
    again = made.cut(sheet, tmp_path, tile_um=90)
    for a, b in zip(small, again, strict=True):
        assert {p.name: p.read_bytes() for p in a.iterdir()} == {p.name: p.read_bytes() for p in b.iterdir()}


def test_overview(strip):
    sheet, small, _ = strip
    with np.load(small[0].parent / "overview.npz") as stored:
        assert stored["stains"].dtype == np.uint16
        assert stored["stains"].shape[0] == 3 and max(stored["stains"].shape) == 1500
        assert float(stored["um_per_px"]) == pytest.approx(460 / 1500)
        assert stored["stain_names"].tolist() == ["DAPI", "Ring", "Cyto"]
        assert stored["stains"].mean((1, 2)) == pytest.approx(sheet.image[:3].mean((1, 2)), rel=0.01)


def test_a_mosaic_smaller_than_a_window(tmp_path):
    sheet = made.make_sheet(tmp_path, 20, 31, levels=1)
    tile = Tile.read(made.cut(sheet, tmp_path / "out")[0])
    assert tile.region == tile.core == (0, 0, 79, 123) and tile.windows == [(0, 0)]


def test_tissue_without_any_transcript_is_seen_by_its_nuclei(tmp_path):
    sheet = made.make_sheet(tmp_path, 60, 200, per_cell=0, tissue=(0.0, 0.25))
    tiles = made.cut(sheet, tmp_path / "out", tile_um=90)
    assert [p.name for p in tiles] == ["y000x000"]
    tile = Tile.read(tiles[0])
    assert tile.n_transcripts == 0 and tile.transcript_counts().sum() == 0
    assert tile.transcripts().dtypes.astype(str).to_dict() == {
        "transcript_id": "int64", "x_wpx": "float64", "y_wpx": "float64", "gene": "category", "is_control": "bool",
    }  # fmt: skip


def test_transcripts_alone_make_tissue_but_controls_do_not(tmp_path):
    sheet = made.make_sheet(tmp_path, 60, 60)
    image = np.full_like(sheet.image, 200)
    made.write_image(sheet.store, image, 2)
    made.write_points(sheet.store, sheet.transcripts, sheet.sample.transcript_bands_um)
    assert len(made.cut(sheet, tmp_path / "out")) == 1
    sheet.transcripts["is_control"] = True
    made.write_image(sheet.store, image, 2)
    made.write_points(sheet.store, sheet.transcripts, sheet.sample.transcript_bands_um)
    with pytest.raises(InputError, match="no tissue found"):
        made.cut(sheet, tmp_path / "none")
    assert not (tmp_path / "none" / "tiles").exists()


def test_no_points_at_all(tmp_path):
    sheet = made.make_sheet(tmp_path, 60, 60, per_cell=0, bands=1)
    (sheet.store / "points" / "transcripts" / "points.parquet" / "part.0.parquet").unlink()
    sheet.sample.transcripts = {"total": 0}
    sheet.sample.write(sheet.sample_json)
    assert Tile.read(made.cut(sheet, tmp_path / "out")[0]).n_transcripts == 0


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda s: (s.store / "points/transcripts/points.parquet/part.1.parquet").unlink(), r"part\.1\.parquet: no such file"),
        (lambda s: (s.store / "images/stains/zarr.json").unlink(), "is not a multiscale image"),
        (lambda s: Sample(**{**vars(s.sample), "height_px": 7}).write(s.sample_json), "do not belong together"),
        (lambda s: Sample(**{**vars(s.sample), "genes": ["Actb", "Gfap"]}).write(s.sample_json), "'Mbp', which sample.json knows neither"),
        (lambda s: Sample(**{**vars(s.sample), "controls": ["Actb"]}).write(s.sample_json), "given twice"),
    ],
)
def test_broken_samples_are_refused_in_plain_words(tmp_path, break_it, message):
    sheet = made.make_sheet(tmp_path, 40, 40)
    break_it(sheet)
    with pytest.raises(InputError, match=message):
        made.cut(sheet, tmp_path / "out")


def test_an_overlap_wider_than_half_a_window_is_refused(tmp_path):
    sheet = made.make_sheet(tmp_path, 40, 40)
    with pytest.raises(InputError, match="Choose a smaller overlap"):
        made.cut(sheet, tmp_path / "out", working_um=0.1)


_MEASURE = """
import sys
from pathlib import Path
from istseg.stages import tile
folder = Path(sys.argv[1])
tile.run(sample_json=folder / "sample.json", zarr=folder / "s.zarr", out=folder / "out", working_um=0.253, tile_um=250, overlap_um=32.384, min_transcripts=3)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_slide(tmp_path):
    """Four times the area and the transcripts, as wide as before (a row of chunks is held): the same memory but for what allocators keep."""
    peaks = []
    for height_px in (4096, 16384):
        folder = tmp_path / str(height_px)
        _large_sample(folder, height_px, 4096)
        done = subprocess.run([sys.executable, "-c", _MEASURE, str(folder)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.2 * peaks[0], peaks


def _large_sample(folder: Path, height_px: int, width_px: int) -> None:
    pixel_um = 0.108
    sheet = made.make_sheet(folder / "seed", 20, 20, membranes=("Ring",), bands=1)
    plane = np.random.default_rng(0).integers(100, 3000, (3, 512, 512)).astype(np.uint16)
    made.write_image(folder / "s.zarr", np.tile(plane, (1, height_px // 512, width_px // 512)), 4)
    height_um, width_um = height_px * pixel_um, width_px * pixel_um
    n = int(height_um * width_um * 2)
    random = np.random.default_rng(1)
    y = np.sort(random.uniform(0, height_um, n))
    points = pd.DataFrame(
        {
            "x": random.uniform(0, width_um, n) + made.SHIFT_UM[0],
            "y": y + made.SHIFT_UM[1],
            "gene": pd.Categorical.from_codes(random.integers(0, 3, n), made.GENES + made.CONTROLS),
            "transcript_id": np.arange(n),
            "is_control": np.zeros(n, bool),
        }
    )
    n_bands = height_px // 512
    ends = [height_um * (i + 1) / n_bands for i in range(n_bands)]
    made.write_points(folder / "s.zarr", points, ends)
    affine = [[1 / pixel_um, 0, -made.SHIFT_UM[0] / pixel_um], [0, 1 / pixel_um, -made.SHIFT_UM[1] / pixel_um], [0, 0, 1]]
    facts = {"pixel_size_um": pixel_um, "height_px": height_px, "width_px": width_px, "micron_to_pixel": affine, "transcript_bands_um": ends}
    Sample(**{**vars(sheet.sample), **facts, "transcripts": {"total": n}}).write(folder / "sample.json")
