"""MERSCOPE (Vizgen): `region_N/` with mosaic TIFFs per stain and plane, a transcript table and vendor cells.

The frame `micron` is the instrument's own; `micron_to_mosaic_pixel_transform.csv` maps it to mosaic pixels. `global_z` is the index of a plane.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError
from istseg.raw import focus, merscope_files, mosaics, tables, tiffs
from istseg.raw.base import TRANSCRIPT_SCHEMA, Channel, Facts, RawSample, assign_roles, refuse_special_files, wanted_planes
from istseg.raw.merscope_files import IMAGE, TRANSCRIPT_FILES, TRANSFORM

NUCLEUS = r"dapi|dna|hoechst"
MEMBRANE = r"cell[ _-]?bound(ary)?[ _-]?\d*|poly[ _-]?t"
"""Boundary stains and the cytoplasm stain; proteins and single-gene stains (e.g. Snap25) mark some cells only and stay in the image."""
CONTROL = r"(?i)^blank([-_ ]|\d|$)"
UNASSIGNED = ("-1", "0", "")
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
        region = merscope_files.find_region(self.root)
        self.region = region
        refuse_special_files(region)
        if self.options.fovs is not None:
            problems.append(f"{self.root}: fovs are only for CosMx; a MERSCOPE sample is one region.")
        if self.options.pixel_size_um is not None:
            warnings.append("pixel_size_um is not used: the transform of a MERSCOPE region says it.")
        self._pages = merscope_files.find_images(region, problems, warnings)
        matrix = merscope_files.read_transform(region / "images" / TRANSFORM, problems)
        shape = merscope_files.mosaic_shape(self._pages, problems)
        names = sorted({stain for stain, _ in self._pages}, key=_natural)
        roles = assign_roles(names, self.options, NUCLEUS, MEMBRANE, str(region / "images"), problems, warnings) if names else []
        channels, self._candidates = self._plan_planes(roles, problems, warnings)
        table = merscope_files.find_transcripts(region, problems)
        self._columns = merscope_files.transcript_columns(table, problems) if table else {}
        if matrix is not None and shape:
            merscope_files.compare_manifest(region / "images" / "manifest.json", matrix, shape, problems, warnings)
        cells, cell_problems = merscope_files.find_cells(region)
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


def _nearest(planes: list[int], wanted: str) -> int:
    target = [int(v) for v in wanted.split("-")]
    middle = sum(target) / len(target)
    return min(planes, key=lambda z: (abs(z - middle), z))


def _natural(name: str) -> list[Any]:
    return [(1, int(part), "") if part.isdigit() else (0, 0, part.lower()) for part in re.split(r"(\d+)", name)]
