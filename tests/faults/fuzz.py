"""A seeded fuzz of the samplesheet and of the readers of raw folders.

    PYTHONPATH=tests python tests/faults/fuzz.py --inputs 20000 --seed 0        (make fuzz)

Every input is one sound sheet or folder with something broken. It may be read or refused with `InputError`; any other exception, a hang, and data that are
read from a file that was cut off without a word about it are failures, and the command ends with 1. A failure is shown with its number: `--only NUMBER`
runs that one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mutations
import numpy as np
import shapely
import tifffile

import raw_fixtures as fx
from istseg import parameters, samplesheet
from istseg.artifacts import annotations
from istseg.artifacts import cells as cells_file
from istseg.artifacts import markers as marker_lists
from istseg.errors import InputError
from istseg.raw import open_raw
from istseg.raw.base import Facts
from istseg.raw.points import PointsWriter
from istseg.report.checks import limits
from istseg.stages import convert, preflight

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10
MEMORY = 6 << 30
"""Address space: a header that asks for gigabytes must be refused before they are taken."""
SHARE_SHEETS = 0.3
SHARE_LISTS = 0.2
CONVERTED = 25
"""Every 25th folder goes through the whole stage convert."""
SHEET = (
    "sample,platform,path,nucleus_stain,membrane_stains,z_planes,fovs,pixel_size_um,annotations,annotations_unit\n"
    "a,merscope,raw/a,DAPI,Cellbound1;PolyT,1-3,,,truth.geojson,px\n"
    "b,cosmx,raw/b,,none,focus,1-20;33,0.12028,,\n"
    'c.d,cosmx,"raw, c",DNA,,all,,,,\n'
)


class Hang(Exception):
    """An input took longer than `SECONDS`."""


def _templates(root: Path) -> dict[str, str]:
    """Small sound folders of every kind that the readers know; name → platform."""
    small = {"height": 48, "width": 64, "n": 150}
    fx.merscope(root / "m_csv", planes=1, stains=("DAPI", "PolyT"), **small)
    fx.merscope(root / "m_gz", planes=2, stains=("DAPI",), table="csv.gz", cells="hdf5", tiff={"tile": (16, 32), "compression": "zlib"}, **small)
    fx.merscope(root / "m_parquet", planes=1, stains=("DAPI", "PolyT"), table="parquet", tiff={"compression": "lzw", "rowsperstrip": 16}, **small)
    frame = {"frame": (64, 72), "grid": (1, 2), "overlap": 4}
    fx.cosmx(root / "c_c", **frame)
    fx.cosmx(root / "c_b", generation="B", polygons=True, labels=False, **frame)
    fx.cosmx(root / "c_a", generation="A", images="composite", **frame)
    (root / "m_csv" / "images" / "manifest.json").write_text('{"mosaic_height_pixels": 48, "mosaic_width_pixels": 64, "microns_per_pixel": 0.108}')
    fx.xenium(root / "x", **small)
    for name in ("c_a", "c_b"):
        (root / name / "S1_ExptConfig.txt").write_text("ImPixel_nm: 120.280\n")
    kinds = {"m": "merscope", "c": "cosmx", "x": "xenium"}
    return {name: kinds[name[0]] for name in ("m_csv", "m_gz", "m_parquet", "c_c", "c_b", "c_a", "x")}


def _read_all(platform: str, root: Path, scratch: Path) -> tuple[str, Facts]:
    """What preflight and convert do with a folder, without writing the image; a digest of everything that was read."""
    reader = open_raw(platform, root)
    facts = reader.inspect()
    problems: list[str] = []
    preflight._check_transcripts(reader.transcript_sample(), facts, problems)
    if problems:
        raise InputError(problems)
    reader.choose_planes()
    digest = hashlib.sha256(repr((facts.shape, [c.name for c in facts.channels], facts.micron_to_pixel.tolist())).encode())
    rows = 0
    for strip in reader.strips(40, scratch):
        assert strip.shape[0] == facts.shape[0] and strip.shape[2] == facts.shape[2], strip.shape
        rows += strip.shape[1]
        digest.update(strip.tobytes())
    assert rows == facts.height_px
    assert len({c.name for c in facts.channels}) == len(facts.channels), "two stains of one name"
    parts = scratch / "parts"
    parts.mkdir()
    writer = PointsWriter(parts, scratch, facts.micron_to_pixel, (facts.height_px, facts.width_px), facts.pixel_size_um, 8)
    given = 0
    for block in reader.transcripts():
        given += block.num_rows
        writer.add(block)
        digest.update(repr(block.to_pydict()).encode())
    genes, controls = writer.close()
    assert all(name and "\0" not in name for name in genes + controls), "a gene that is none"
    assert writer.counts["total"] + writer.counts["invalid"] == given
    planes = facts.channels[0].planes
    ids, polygons, _ = reader.vendor_cells(planes[0] if planes else None)
    assert len(set(ids)) == len(ids) == len(polygons)
    assert all(p.is_valid and p.area > 0 and np.isfinite(p.bounds).all() for p in polygons), "an invalid polygon"
    digest.update(repr(ids).encode() + b"".join(shapely.to_wkb(p) for p in polygons))
    return digest.hexdigest(), facts


def _lists(folder: Path) -> dict[Path, Callable[[Path], object]]:
    """Sound files that parameters and samplesheets name beside raw folders, and what reads them."""
    folder.mkdir()
    frame = annotations.Frame(np.array([[2.0, 0, -200], [0, 2.0, -400], [0, 0, 1]]), 120, 160, 0.5, 1.0)
    labels = np.zeros((120, 160), np.uint16)
    labels[20:40, 20:40], labels[60:80, 90:99] = 3, 7
    tifffile.imwrite(folder / "labels.tif", labels, compression="zlib")
    outlines = [("a", shapely.box(20, 30, 40, 60)), ("b", shapely.box(70, 30, 90, 60))]
    annotations.write_geojson(folder / "truth.geojson", outlines, shapely.box(10, 10, 150, 110))
    cells_file.write(folder / "cells.parquet", cells_file.frame(["a", "b"], [shapely.box(120, 210, 130, 220), shapely.box(140, 210, 150, 220)]))
    (folder / "pairs.csv").write_text("gene_a,gene_b\nActb,Gad1\nActb,Slc17a7\n")
    (folder / "markers.csv").write_text("gene,cell_type\nActb,all\nGad1,neuron\n")
    (folder / "limits.yaml").write_text("spurious_rate: {look: 0.05, fail: 0.2}\nnuclei_in_one_cell:\n  skip: true\n")
    (folder / "params.json").write_text(json.dumps({"input": "s.csv", "tile_um": 750.0, "compare": "vendor,teacher", "teacher": "watershed", "gpu": False}))

    def params(path: Path) -> None:
        problems: list[str] = []
        parameters.check_files(path, ROOT / "nextflow_schema.json", problems)
        if problems:
            raise InputError(problems)

    def annotated(path: Path) -> None:
        found = annotations.read(path, None, frame)
        assert len(found.ids) == len(found.polygons) > 0 and shapely.is_valid(found.polygons).all()

    readers = {"pairs.csv": marker_lists.read_pairs, "markers.csv": marker_lists.read_markers, "limits.yaml": limits, "params.json": params}
    return {path: readers.get(path.name, annotated) for path in sorted(folder.iterdir())}


class Fuzz:
    """Works in `folder`; the same seed and number give the same input."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        templates = folder / "templates"
        self.platforms = _templates(templates)
        self.files = {name: sorted(p for p in (templates / name).rglob("*") if p.is_file()) for name in self.platforms}
        self.data = {p: p.read_bytes() for files in self.files.values() for p in files}
        self.lists = _lists(folder / "lists")
        self.data |= {p: p.read_bytes() for p in self.lists}
        for path, read in self.lists.items():
            read(path)
        self.sound = {}
        for name, platform in self.platforms.items():
            self._scratch()
            self.sound[name] = _read_all(platform, templates / name, self.folder / "scratch")[0]

    def run(self, number: int) -> None:
        """One input."""
        rng = random.Random(f"{self.seed} {number}")
        kind = rng.random()
        if kind < SHARE_SHEETS:
            self._guarded(number, "sheet", lambda: self._sheet(rng))
        elif kind < SHARE_SHEETS + SHARE_LISTS:
            path = rng.choice(sorted(self.lists))
            self._guarded(number, f"list {path.name}", lambda: self._list(rng, path))
        else:
            self._folder(number, rng)

    def _sheet(self, rng: random.Random) -> str:
        path = self.folder / "sheet.csv"
        path.write_bytes(mutations.sheet(rng, SHEET))
        problems: list[str] = []
        rows = samplesheet.read(path, problems)
        for row in rows:
            assert "/" not in row.sample and not set(row.sample) & set(" $`'\"\\;|&<>\n\0"), row
            assert row.platform in ("merscope", "cosmx"), row
        if problems:
            raise InputError(problems)
        return "read"

    def _list(self, rng: random.Random, path: Path) -> str:
        path.write_bytes(mutations.of_file(rng, path, self.data[path])[1])
        try:
            self.lists[path](path)
            return "read"
        finally:
            path.write_bytes(self.data[path])

    def _folder(self, number: int, rng: random.Random) -> None:
        name = rng.choice(sorted(self.platforms))
        root = self.folder / "templates" / name
        path = rng.choice(self.files[name])
        if rng.random() < 0.1:
            what = mutations.of_folder(rng, root, path)
        else:
            what, data = mutations.of_file(rng, path, self.data[path])
            path.write_bytes(data)
        call = self._convert if number % CONVERTED == 0 else self._read
        try:
            self._guarded(number, f"{name}/{path.relative_to(root)}: {what}", lambda: call(name, root, path, what))
        finally:
            self._restore(name, root)

    def _read(self, name: str, root: Path, path: Path, what: str) -> str:
        self._scratch()
        digest, facts = _read_all(self.platforms[name], root, self.folder / "scratch")
        if digest == self.sound[name]:
            return "read as the sound one"
        if what == "truncated" and not facts.warnings and not self._cut_between_rows(path):
            raise AssertionError("a file that was cut off is read as something else without a word")
        return "read"

    def _cut_between_rows(self, path: Path) -> bool:
        """A text table that lost whole rows: nothing shows it."""
        return path.suffix in (".csv", ".txt") and path.read_bytes().endswith(b"\n")

    def _convert(self, name: str, root: Path, path: Path, what: str) -> str:
        out = self.folder / "out"
        try:
            convert.run(raw=root, sample="s", platform=self.platforms[name], out=out)
            return "converted"
        finally:
            left = [p.name for p in out.iterdir()] if out.exists() else []
            shutil.rmtree(out, ignore_errors=True)
            assert not [n for n in left if "part" in n], left
            assert ("sample.json" in left) == ("s.zarr" in left), left

    def _scratch(self) -> None:
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        (self.folder / "scratch").mkdir()

    def _restore(self, name: str, root: Path) -> None:
        """As it was: files that are new go, the others get their bytes back."""
        for found in root.rglob("*"):
            if found not in self.data and (found.is_symlink() or not found.is_dir()):
                found.unlink()
        for path in self.files[name]:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif path.is_symlink() or path.is_fifo():
                path.unlink()
            path.write_bytes(self.data[path])

    def _guarded(self, number: int, label: str, call: Callable[[], str]) -> None:
        signal.alarm(SECONDS)
        try:
            outcome = call()
        except InputError as error:
            outcome = "refused"
            if not error.problems or not all(p.strip() for p in error.problems):
                self._failed(number, label, "refused without a word")
        except (Exception, Hang):
            outcome = "failed"
            self._failed(number, label, traceback.format_exc(limit=-6))
        finally:
            signal.alarm(0)
        self.outcomes[f"{label.split()[0] if label.startswith(('sheet', 'list')) else 'folder'} {outcome}"] += 1

    def _failed(self, number: int, label: str, text: str) -> None:
        self.failures.append(f"--only {number} ({label})\n{text}")


def _alarm(*_: object) -> None:
    raise Hang(f"longer than {SECONDS} s")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of the one input to run")
    parser.add_argument("--show", type=int, default=10, help="failures that are printed")
    arguments = parser.parse_args()
    # Files that are cut and bits that are flipped make libraries warn; what counts is how it ends.
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    np.seterr(all="ignore")
    signal.signal(signal.SIGALRM, _alarm)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    start = time.process_time()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        fuzz = Fuzz(Path(folder), arguments.seed)
        numbers = range(arguments.inputs) if arguments.only is None else [arguments.only]
        for number in numbers:
            fuzz.run(number)
    for text in fuzz.failures[: arguments.show]:
        print(text, file=sys.stderr)
    print(f"{sum(fuzz.outcomes.values())} inputs in {time.process_time() - start:.0f} CPU s, seed {arguments.seed}: {dict(sorted(fuzz.outcomes.items()))}")
    print(f"{len(fuzz.failures)} failures")
    return 1 if fuzz.failures else 0


if __name__ == "__main__":
    sys.exit(main())
