"""MERSCOPE (Vizgen): `region_N/` with mosaic TIFFs per stain and plane, a transcript table and vendor cells.

The frame `micron` is the instrument's own; `micron_to_mosaic_pixel_transform.csv` maps it to mosaic pixels. `global_z` is the index of a plane.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError
from istseg.raw import focus, mosaics, tables, tiffs
from istseg.raw.base import TRANSCRIPT_SCHEMA, Channel, Facts, RawSample, assign_roles, refuse_special_files, wanted_planes

NUCLEUS = r"dapi|dna|hoechst"
MEMBRANE = r"cell[ _-]?bound(ary)?[ _-]?\d*|poly[ _-]?t"
"""Boundary stains and the cytoplasm stain; proteins and single-gene stains (e.g. Snap25) mark some cells only and stay in the image."""
IMAGE = re.compile(r"mosaic_(?P<stain>.+)_z(?P<z>[0-9]{1,4})\.tiff?", re.IGNORECASE)
TRANSFORM = "micron_to_mosaic_pixel_transform.csv"
TRANSCRIPT_FILES = ("detected_transcripts.parquet", "detected_transcripts.csv", "detected_transcripts.csv.gz")
CONTROL = r"(?i)^blank([-_ ]|\d|$)"
UNASSIGNED = ("-1", "0", "")
_MAX_SHEAR = 1e-4
_MAX_ANISOTROPY = 0.02
_MIN_FIELD = 200
"""Transcripts that a field of view needs so that their extent says where it lies."""


class MerscopeSample(RawSample):
    """A region folder, or a run folder with exactly one region."""

    platform = "merscope"

    @classmethod
    def root_of(cls, folder: Path, names: set[str], top: Path) -> Path | None:
        """See `RawSample.root_of`."""
        return folder if names & set(TRANSCRIPT_FILES) and "images" in names else None

    @classmethod
    def remains_of(cls, folder: Path, names: set[str], top: Path) -> Path | None:
        """See `RawSample.remains_of`."""
        if names & set(TRANSCRIPT_FILES):
            return folder
        images = folder.name == "images" and folder != top and (TRANSFORM in names or any(IMAGE.fullmatch(name) for name in names))
        return folder.parent if images else None

    def inspect(self) -> Facts:
        """See `RawSample.inspect`."""
        problems: list[str] = []
        warnings: list[str] = []
        region = find_region(self.root)
        self.region = region
        refuse_special_files(region)
        if self.options.fovs is not None:
            problems.append(f"{self.root}: fovs are only for CosMx; a MERSCOPE sample is one region.")
        if self.options.pixel_size_um is not None:
            warnings.append("pixel_size_um is not used: the transform of a MERSCOPE region says it.")
        self._pages = _find_images(region, problems, warnings)
        matrix = read_transform(region / "images" / TRANSFORM, problems)
        shape = _mosaic_shape(self._pages, problems)
        names = sorted({stain for stain, _ in self._pages}, key=_natural)
        roles = assign_roles(names, self.options, NUCLEUS, MEMBRANE, str(region / "images"), problems, warnings) if names else []
        channels, self._candidates = self._plan_planes(roles, problems, warnings)
        table = _find_transcripts(region, problems)
        self._columns = _transcript_columns(table, problems) if table else {}
        if matrix is not None and shape:
            _compare_manifest(region / "images" / "manifest.json", matrix, shape, problems, warnings)
        cells, cell_problems = _find_cells(region)
        problems += cell_problems
        if problems:
            raise InputError(problems)
        assert matrix is not None and shape is not None and table is not None
        self._table = table
        self._cells = cells
        if cells is None:
            warnings.append("There are no vendor cells (cell_boundaries): no comparison with the vendor's segmentation.")
        planes = sorted({z for _, z in self._pages})
        pixel = float(1 / np.sqrt(matrix[0, 0] * matrix[1, 1]))
        self.facts = Facts(
            generation="hdf5 cells" if cells and cells.is_dir() else "parquet cells" if cells else "no cells",
            channels=channels,
            planes=planes,
            height_px=shape[0],
            width_px=shape[1],
            pixel_size_um=pixel,
            micron_to_pixel=matrix,
            tables=[table, *([cells] if cells and cells.is_file() else [])],
            cells_from=str(cells.relative_to(region)) if cells else None,
            warnings=warnings,
            details={"region": region.name, "raw_planes": planes},
        )
        self.facts.warnings += tables.line_end_warnings(self.facts.tables)
        return self.facts

    def _plan_planes(self, roles: list[tuple[str, str]], problems: list[str], warnings: list[str]) -> tuple[list[Channel], list[int]]:
        """Channels with the planes they use; with `focus` the planes that may be chosen instead."""
        have = {name: sorted(z for stain, z in self._pages if stain == name) for name, _ in roles}
        choice = self.options.z_planes
        channels, candidates = [], []
        if choice == "focus" and roles:
            network = [set(have[name]) for name, role in roles if role != "other"]
            candidates = sorted(set.intersection(*network)) or have[roles[0][0]]
        for name, role in roles:
            planes = [] if choice == "focus" else wanted_planes(choice, have[name])
            if choice != "focus" and not planes:
                text = f"{name} has no plane {choice}; it has {', '.join(map(str, have[name]))}"
                if role == "other":
                    warnings.append(f"Stain {text}: plane {_nearest(have[name], choice)} is used for it.")
                    planes = [_nearest(have[name], choice)]
                else:
                    problems.append(f"{self.region / 'images'}: stain {text}. Choose other z_planes.")
            channels.append(Channel(name, role, planes, next((p.dtype for (s, _), p in self._pages.items() if s == name), "uint16")))
        return channels, candidates

    def choose_planes(self) -> dict[str, Any]:
        """See `RawSample.choose_planes`."""
        if self.options.z_planes != "focus":
            return {"choice": self.options.z_planes, "planes": {c.name: c.planes for c in self.facts.channels}}
        nucleus = self.facts.channels[0].name
        readers = {z: tiffs.PageReader(self._pages[nucleus, z]) for z in self._candidates}
        try:
            best, sharpness = focus.best_plane(lambda z, *box: readers[z].block(*box), self._candidates, self.facts.height_px, self.facts.width_px)
        finally:
            for reader in readers.values():
                reader.close()
        for channel in self.facts.channels:
            have = sorted(z for stain, z in self._pages if stain == channel.name)
            channel.planes = [_nearest(have, str(best))]
            if channel.planes != [best]:
                self.facts.warnings.append(f"Stain {channel.name} has no plane {best} (the best focused one): plane {channel.planes[0]} is used for it.")
        return {"choice": "focus", "sharpness": sharpness, "planes": {c.name: c.planes for c in self.facts.channels}}

    def pixels(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """See `RawSample.pixels`. Of a stack whose plane is chosen later: the middle one of the candidates."""
        middle = self._candidates[len(self._candidates) // 2] if self._candidates else None
        used = [(c.name, c.planes[len(c.planes) // 2] if c.planes else middle) for c in self.facts.channels if c.role != "other"]
        return tiffs.blocks([self._pages[key] for key in used if key in self._pages], (y0, y1, x0, x1))

    def strips(self, rows: int, scratch: Path) -> Iterator[np.ndarray]:
        """See `RawSample.strips`."""
        return mosaics.strips([[self._pages[c.name, z] for z in c.planes] for c in self.facts.channels], rows)

    def transcripts(self) -> Iterator[pa.Table]:
        """See `RawSample.transcripts`."""
        start = 0
        fields = _Fields()
        for block in tables.stream(self._table, self._types()):
            if "fov" in self._columns:
                fields.add(*(block.column(self._columns[key]) for key in ("fov", "x", "y")))
            yield self._normal(block, start)
            start += block.num_rows
        self.facts.details["fov_boxes_px"] = fields.boxes(self.facts.micron_to_pixel)

    def transcript_sample(self) -> pa.Table:
        """See `RawSample.transcript_sample`."""
        return self._normal(tables.sample(self._table, self._types()), 0)

    def _types(self) -> dict[str, pa.DataType]:
        text = {"gene", "cell", "fov"}
        return {column: pa.string() if key in text else pa.float64() for key, column in self._columns.items()}

    def _normal(self, block: pa.Table, start: int) -> pa.Table:
        gene = block.column(self._columns["gene"])
        n = block.num_rows
        if "cell" in self._columns:
            cell = block.column(self._columns["cell"])
            cell = pc.if_else(pc.is_in(cell, pa.array(UNASSIGNED)), pa.scalar(None, pa.string()), cell)
        else:
            cell = pa.nulls(n, pa.string())
        z = block.column(self._columns["z"]).cast(pa.float32()) if "z" in self._columns else pa.array(np.zeros(n, np.float32))
        control = pc.fill_null(pc.match_substring_regex(gene, CONTROL), False)
        columns = [pa.array(np.arange(start, start + n)), block.column(self._columns["x"]), block.column(self._columns["y"]), z, gene, control, cell]
        return pa.table(columns, schema=TRANSCRIPT_SCHEMA)

    def vendor_cells(self, wanted_plane: int | None) -> tuple[list[str], list[Any], dict[str, int]]:
        """See `RawSample.vendor_cells`."""
        from istseg.raw import merscope_cells

        if self._cells is None:
            return [], [], {}
        if self._cells.is_dir():
            return merscope_cells.from_hdf5(self._cells, wanted_plane)
        ids, polygons, counts, note, self._cells_in_pixels = merscope_cells.from_parquet(
            self._cells, wanted_plane, self.facts.micron_to_pixel, (self.facts.height_px, self.facts.width_px)
        )
        if note:
            self.facts.warnings.append(note)
        return ids, polygons, counts

    def vendor_planes(self) -> Iterator[tuple[str, int, Any]]:
        """See `RawSample.vendor_planes`."""
        from istseg.raw import merscope_cells

        if self._cells is None:
            return iter(())
        if self._cells.is_dir():
            return merscope_cells.planes_of_hdf5(self._cells)
        return merscope_cells.planes_of_parquet(self._cells, self.facts.micron_to_pixel if self._cells_in_pixels else None)


class _Fields:
    """Where the fields of view lie: the extent of their transcripts, because no file of a region says it."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[np.ndarray, int]] = {}

    def add(self, fov: pa.ChunkedArray, x: pa.ChunkedArray, y: pa.ChunkedArray) -> None:
        """Take a block of rows."""
        table = pa.table({"fov": fov, "x": x, "y": y}).group_by("fov", use_threads=False)
        extent = table.aggregate([("x", "min"), ("y", "min"), ("x", "max"), ("y", "max"), ([], "count_all")])
        boxes = np.column_stack([extent[name].to_numpy() for name in ("x_min", "y_min", "x_max", "y_max")]) * [1, 1, -1, -1]
        for name, box, n in zip(extent["fov"].to_pylist(), boxes, extent["count_all"].to_pylist(), strict=True):
            if name is not None:
                known, before = self._known.get(name, (box, 0))
                self._known[name] = np.fmin(known, box), before + n

    def boxes(self, micron_to_pixel: np.ndarray) -> dict[str, list[int]]:
        """Field → [y0, x0, y1, x1] in mosaic pixels; of fields with few transcripts the extent says little, they are left out."""
        found = {}
        for name in sorted(self._known, key=_natural):
            box, n = self._known[name]
            if n < _MIN_FIELD or not np.isfinite(box).all():
                continue
            (x0, y0), (x1, y1) = apply_affine(micron_to_pixel, np.array([box[:2], -box[2:]]))
            found[name] = [round(float(v)) for v in (y0, x0, y1, x1)]
        return found


def find_region(root: Path) -> Path:
    """The region folder: `root` itself or the only region below it.

    Raises
    ------
    InputError
        If there is none or more than one.
    """
    try:
        if not root.exists():
            raise InputError(f"{root}: no such folder. Is the path in the samplesheet right?")
        if not root.is_dir():
            raise InputError(f"{root}: is a file; give the region folder of the run.")
        entries = sorted(root.iterdir())
        if any(_is_region_part(entry) for entry in entries):
            return root
        regions = [e for e in entries if e.is_dir() and any(_is_region_part(inner) for inner in sorted(e.iterdir()))]
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror or error}). Check the link and the permissions.") from None
    if len(regions) == 1:
        return regions[0]
    if regions:
        raise InputError(
            f"{root}: holds several regions ({', '.join(r.name for r in regions)}). One row of the samplesheet is one region: give its folder as path."
        )
    listing = ", ".join(e.name for e in entries[:8]) or "nothing"
    raise InputError(f"{root}: is not a MERSCOPE region: there is no `images` folder and no detected_transcripts table. It holds: {listing}.")


def _is_region_part(entry: Path) -> bool:
    return entry.name in TRANSCRIPT_FILES or (entry.name == "images" and entry.is_dir())


def _find_images(region: Path, problems: list[str], warnings: list[str]) -> dict[tuple[str, int], tiffs.PageInfo]:
    folder = region / "images"
    pages: dict[tuple[str, int], tiffs.PageInfo] = {}
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        problems.append(f"{folder}: cannot be read ({error.strerror}). A region needs its folder of mosaic images.")
        return {}
    ignored = []
    found = 0
    for path in files:
        match = IMAGE.fullmatch(path.name)
        if not match:
            ignored += [path.name] if path.suffix.lower() in (".tif", ".tiff") else []
            continue
        found += 1
        key = match["stain"], int(match["z"])
        if key in pages:
            problems.append(f"{path}: is a second image of stain {key[0]}, plane {key[1]} beside {pages[key].path.name}; keep one.")
            continue
        read = tiffs.inspect(path, problems)
        if len(read) > 1:
            warnings.append(f"{path.name} has {len(read)} pages; the first is used.")
        if read:
            pages[key] = read[0]
    if not found:
        problems.append(f"{folder}: holds no image named mosaic_<stain>_z<plane>.tif.")
    if ignored:
        warnings.append(f"Images with other names were left out: {', '.join(ignored[:5])}{' ...' if len(ignored) > 5 else ''}.")
    return pages


def _mosaic_shape(pages: dict[tuple[str, int], tiffs.PageInfo], problems: list[str]) -> tuple[int, int] | None:
    shapes: dict[tuple[int, int], list[str]] = {}
    for page in pages.values():
        shapes.setdefault(page.shape, []).append(page.path.name)
    if len(shapes) > 1:
        listing = "; ".join(f"{h} x {w}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" for (h, w), names in shapes.items())
        problems.append(f"{next(iter(pages.values())).path.parent}: the mosaics differ in size ({listing}). All images of a region must have one size.")
    return next(iter(shapes)) if len(shapes) == 1 else None


def read_transform(path: Path, problems: list[str]) -> np.ndarray | None:
    """(3, 3) µm → mosaic pixel; None with the reason in `problems`. Rotations and flips do not occur and are refused."""
    try:
        rows = [re.split(r"[\s,]+", line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        matrix = np.array(rows, float)
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}). It is needed to place transcripts on the image and is never assumed.")
        return None
    except (ValueError, UnicodeDecodeError):
        problems.append(f"{path}: is not a matrix of 3 x 3 numbers separated by blanks.")
        return None
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        problems.append(f"{path}: must be a matrix of 3 x 3 finite numbers, its shape is {matrix.shape}.")
        return None
    scale_x, scale_y = matrix[0, 0], matrix[1, 1]
    if not np.allclose(matrix[2], [0, 0, 1]):
        problems.append(f"{path}: the last row must be 0 0 1, it is {matrix[2].tolist()}.")
        return None
    if max(abs(matrix[0, 1]), abs(matrix[1, 0])) > _MAX_SHEAR * max(abs(scale_x), abs(scale_y), 1e-9):
        problems.append(f"{path}: contains a rotation or shear ({matrix[:2, :2].tolist()}), which is not supported; export the region without rotation.")
        return None
    if scale_x <= 0 or scale_y <= 0:
        problems.append(f"{path}: contains a flip or a zero scale (x {scale_x:g}, y {scale_y:g}), which is not supported.")
        return None
    if not 0.2 <= scale_x <= 100 or abs(scale_x / scale_y - 1) > _MAX_ANISOTROPY:
        problems.append(f"{path}: the scale (x {scale_x:g}, y {scale_y:g} pixels per µm) is not that of an image; MERSCOPE has about 9.26 in both.")
        return None
    return matrix


def _compare_manifest(path: Path, matrix: np.ndarray, shape: tuple[int, int], problems: list[str], warnings: list[str]) -> None:
    if not path.exists():
        return
    try:
        manifest = json.loads(path.read_text())
        size = manifest.get("mosaic_height_pixels"), manifest.get("mosaic_width_pixels")
        pixel = manifest.get("microns_per_pixel")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        warnings.append(f"manifest.json cannot be read ({error}); the transform and the images are used.")
        return
    if None not in size and tuple(size) != shape:
        problems.append(f"{path}: says {size[0]} x {size[1]} pixels, the images have {shape[0]} x {shape[1]}. The folder mixes files of two exports.")
    if isinstance(pixel, (int, float)) and abs(pixel * matrix[0, 0] - 1) > 0.01:
        warnings.append(f"manifest.json says {pixel} µm per pixel, the transform {1 / matrix[0, 0]:.5f}; the transform is used.")


def _find_transcripts(region: Path, problems: list[str]) -> Path | None:
    found = [region / name for name in TRANSCRIPT_FILES if (region / name).exists() or (region / name).is_symlink()]
    if not found:
        problems.append(f"{region}: has no transcript table; expected one of {', '.join(TRANSCRIPT_FILES)}.")
        return None
    if len(found) > 1:
        problems.append(f"{region}: has several transcript tables ({', '.join(f.name for f in found)}); keep one.")
        return None
    return found[0]


def _transcript_columns(path: Path, problems: list[str]) -> dict[str, str]:
    try:
        names = tables.header(path)
    except InputError as error:
        problems += error.problems
        return {}
    wanted = {"x": ("global_x",), "y": ("global_y",), "z": ("global_z",), "gene": ("gene",), "cell": ("cell_id", "EntityID"), "fov": ("fov",)}
    columns = {key: tables.find_column(names, *options) for key, options in wanted.items()}
    missing = [wanted[key][0] for key in ("x", "y", "gene") if columns[key] is None]
    if missing:
        problems.append(f"{path}: lacks the columns {', '.join(missing)}; it has {', '.join(names[:12])}.")
        return {}
    return {key: column for key, column in columns.items() if column}


def _find_cells(region: Path) -> tuple[Path | None, list[str]]:
    """Vendor cells: GeoParquet under one of its names (microns before pixels), else a folder of hdf5 files."""
    for pattern in ("cell_boundaries.parquet", "*micron_space.parquet", "*mosaic_space.parquet"):
        for folder in (region, region / "cell_boundaries"):
            found = sorted(folder.glob(pattern)) if folder.is_dir() else []
            if len(found) > 1:
                return None, [f"{folder}: several files of vendor cells ({', '.join(f.name for f in found)}); keep the one to compare with."]
            if found:
                return found[0], []
    folder = region / "cell_boundaries"
    return (folder, []) if folder.is_dir() and any(folder.glob("*.hdf5")) else (None, [])


def _nearest(planes: list[int], wanted: str) -> int:
    target = [int(v) for v in wanted.split("-")]
    middle = sum(target) / len(target)
    return min(planes, key=lambda z: (abs(z - middle), z))


def _natural(name: str) -> list[Any]:
    return [(1, int(part), "") if part.isdigit() else (0, 0, part.lower()) for part in re.split(r"(\d+)", name)]
