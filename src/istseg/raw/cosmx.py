"""CosMx (NanoString / Bruker): fields of view (FOVs) with local coordinates, stitched into one mosaic.

The frame `micron` is mosaic pixel × pixel size, y down. Orientation and offsets are inferred and checked, see `cosmx_geometry`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from istseg.errors import InputError
from istseg.raw import cosmx_cells, cosmx_files, cosmx_geometry, cosmx_orientation, tables, tiffs
from istseg.raw import cosmx_images as images
from istseg.raw.base import TRANSCRIPT_SCHEMA, Channel, Facts, RawSample, assign_roles, refuse_special_files

NUCLEUS = r"dapi|dna|hoechst|nuclei|u"
MEMBRANE = r"membrane.*|cd298.*|b2m.*|.*/b2m|pan-?ck.*|cytokeratin.*|cd45.*|cd3|cd68|cd8|cd20|18s.*|rrna.*|gfap|cd44|cd14|cd31|cd56"
"""All immunostains of the morphology kits (method's paper: CosMx uses every stain there is). Red and green of a composite picture are not
among them: their grey values are squeezed and mixed, and the base model does better without them (its card, real crops, point 4)."""
CONTROL = r"(?i)^(neg(ative|prb)|systemcontrol|falsecode|custom ?negative)"
_AGREE = 0.02


class CosmxSample(RawSample):
    """The folder of one slide: flat files with images and, where there are any, labels."""

    platform = "cosmx"

    @classmethod
    def root_of(cls, folder: Path, names: set[str], top: Path) -> Path | None:
        """See `RawSample.root_of`. Flat files may lie beside the images, below a folder of both."""
        return cosmx_files.root_with_images(folder, top) if any(cosmx_files.is_transcript_table(name) for name in names) else None

    @classmethod
    def remains_of(cls, folder: Path, names: set[str], top: Path) -> Path | None:
        """See `RawSample.remains_of`."""
        if any(cosmx_files.is_positions_table(name) for name in names):
            return cosmx_files.root_with_images(folder, top)
        if folder == top or not cosmx_files.holds_images(folder, names):
            return None
        return folder.parents[1] if folder.parent.name == "CellStatsDir" and folder.parent != top else folder.parent

    def inspect(self) -> Facts:
        """See `RawSample.inspect`."""
        problems: list[str] = []
        self._warnings: list[str] = []
        self.layout = layout = cosmx_files.find_layout(self.root, problems, self._warnings)
        refuse_special_files(self.root)
        if self.options.z_planes not in ("focus", "all", "0"):
            self._warnings.append(f"z_planes {self.options.z_planes} is not used: CosMx images have one plane.")
        self._columns = self._transcript_columns(problems)
        positions, unit, ratio = cosmx_files.read_positions(layout.positions, problems) if layout.positions else ({}, "px", None)
        self._select_fovs(positions, problems)
        image, names = self._inspect_images(problems)
        if problems:
            raise InputError(problems)
        assert image is not None and layout.tx is not None and layout.positions is not None
        roles = assign_roles(names, self.options, NUCLEUS, MEMBRANE, str(layout.root), problems, self._warnings)
        self._label_pages = self._inspect_labels(problems)
        frame = self._frame(image, problems)
        rows = self._local_rows(problems)
        if problems or frame is None or rows is None:
            raise InputError(problems)
        generation = "B" if unit == "mm" else "C" if ratio else "A"
        signs, fits = self._signs(rows, generation, problems)
        table_um, source = self._pixel_size(ratio, positions, unit, fits, image, frame, generation, problems)
        if problems:
            raise InputError(problems)
        flip, evidence = self._flip(rows, frame, signs[1], problems)
        offsets, shift = self._offsets(positions, unit, table_um, fits, signs, problems)
        if problems:
            raise InputError(problems)
        self.placement = cosmx_geometry.place(offsets[0], offsets[1], signs, flip, frame, image, set(self._fovs))
        if max(self.placement.height_px, self.placement.width_px) > tiffs.MAX_SIDE_PX:
            raise InputError(
                f"{layout.positions}: the fields of view span {self.placement.height_px:,} x {self.placement.width_px:,} pixels, which no slide has: "
                "a position is wrong. Export the table again, or choose the fields of view with fovs."
            )
        self._image = image
        pixel = table_um / self.placement.scale
        self.facts = Facts(
            generation=generation,
            channels=[Channel(name, role, [0], self._dtype) for name, role in roles],
            planes=[0],
            height_px=self.placement.height_px,
            width_px=self.placement.width_px,
            pixel_size_um=pixel,
            micron_to_pixel=np.diag([1 / pixel, 1 / pixel, 1.0]),
            tables=[p for p in (layout.tx, layout.positions, None if self._label_pages else layout.polygons) if p],
            cells_from="CellLabels" if self._label_pages else layout.polygons.name if layout.polygons else None,
            warnings=self._warnings,
            details={
                "images": "composite" if layout.composite else "morphology",
                "fovs": self._fovs,
                "fov_boxes_px": {str(f): [y, x, y + image[0], x + image[1]] for f in self._fovs for y, x in [self.placement.origin_px[f]]},
                "orientation": {"flip": flip, "global_against_local": {"x": signs[0], "y": signs[1]}, "offset_against_positions_px": shift, **evidence},
                "pixel_size_from": source,
            },
        )
        self.facts.warnings += tables.line_end_warnings(self.facts.tables)
        self._order = [names.index(c.name) for c in self.facts.channels]
        if self.facts.cells_from is None:
            self._warnings.append("There are no vendor cells (CellLabels or polygons): no comparison with the vendor's segmentation.")
        return self.facts

    def _transcript_columns(self, problems: list[str]) -> dict[str, str]:
        if self.layout.tx is None:
            return {}
        try:
            names = tables.header(self.layout.tx)
        except InputError as error:
            problems += error.problems
            return {}
        wanted = {
            "fov": ("fov",),
            "cell": ("cell_ID", "cellID"),
            "x": ("x_local_px",),
            "y": ("y_local_px",),
            "x_global": ("x_global_px",),
            "y_global": ("y_global_px",),
            "z": ("z",),
            "gene": ("target", "gene"),
        }
        columns = {key: tables.find_column(names, *options) for key, options in wanted.items()}
        missing = [wanted[key][0] for key in ("fov", "x", "y", "gene") if columns[key] is None]
        if missing:
            problems.append(f"{self.layout.tx}: lacks the columns {', '.join(missing)}; it has {', '.join(names[:12])}.")
            return {}
        return {key: column for key, column in columns.items() if column}

    def _select_fovs(self, positions: dict[int, tuple[float, float]], problems: list[str]) -> None:
        """FOVs of the sample with position and image; the phantoms among the others are told."""
        have, placed = set(self.layout.images), set(positions)
        wanted = self.options.fovs
        if wanted is not None:
            absent = sorted(wanted - placed - have)
            if absent and (placed or have):
                problems.append(f"{self.root}: fovs {_listing(absent)} are not there; there are {_listing(sorted(placed | have))}.")
            have, placed = have & wanted, placed & wanted
        if placed - have and have:
            self._warnings.append(f"Fields of view with a position but no image (their transcripts lie outside the image): {_listing(sorted(placed - have))}.")
        if have - placed and placed:
            self._warnings.append(f"Fields of view with an image but no position are left out: {_listing(sorted(have - placed))}.")
        self._fovs = sorted(have & placed)
        self._placed = placed
        if not self._fovs and have and placed:
            problems.append(f"{self.root}: no field of view has both a position and an image.")

    def _inspect_images(self, problems: list[str]) -> tuple[tuple[int, int] | None, list[str]]:
        """(height, width) that all images share, and the names of the channels."""
        shapes: dict[tuple[int, int], list[int]] = {}
        self._dtype = "uint8"
        self._description: dict[str, Any] = {}
        self._pages = {}
        for fov in self._fovs:
            path = self.layout.images[fov]
            if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
                shape = images.inspect_picture(path, problems)
            else:
                self._pages[fov] = pages = tiffs.inspect(path, problems)
                shape = pages[0].shape if pages else None
                if len({(page.shape, page.dtype) for page in pages}) > 1:
                    problems.append(f"{path}: its pages differ in size or type of the pixels. Export the image again.")
            if shape:
                shapes.setdefault(shape, []).append(fov)
        if not shapes:
            return None, []
        if len(shapes) > 1:
            listing = "; ".join(f"{h} x {w}: {_listing(f)}" for (h, w), f in shapes.items())
            problems.append(f"{self.root}: the images of the fields of view differ in size ({listing}).")
            return None, []
        if not self._pages:
            return next(iter(shapes)), list(images.COMPOSITE)
        counts = {len(p) for p in self._pages.values() if p}
        if len(counts) != 1 or len(self._pages) != len(self._fovs):
            problems.append(f"{self.root}: the images of the fields of view differ in their number of channels ({sorted(counts)} pages).")
            return None, []
        first = next(p for p in self._pages.values() if p)
        self._dtype = first[0].dtype
        if len({p[0].dtype for p in self._pages.values() if p}) > 1:
            problems.append(f"{self.root}: the images of the fields of view differ in the type of their pixels (uint8 and uint16). Export them again.")
        self._description = cosmx_files.description_json(first[0])
        return next(iter(shapes)), cosmx_files.channel_names(self._description, self.layout.channels, len(first), self._warnings)

    def _inspect_labels(self, problems: list[str]) -> dict[int, tiffs.PageInfo]:
        pages = {}
        for fov in self._fovs:
            if fov in self.layout.labels:
                read = tiffs.inspect(self.layout.labels[fov], problems, cosmx_files.LABEL_TYPES)
                if read:
                    pages[fov] = read[0]
        missing = sorted(set(self._fovs) - set(self.layout.labels))
        if pages and missing:
            self._warnings.append(f"Fields of view without labels have no vendor cells: {_listing(missing)}.")
        return pages

    def _frame(self, image: tuple[int, int], problems: list[str]) -> tuple[int, int] | None:
        """(height, width) of a FOV in the table's pixels: the labels', which images may be a binned form of."""
        shapes = {p.shape for p in self._label_pages.values()} or {image}
        if len(shapes) > 1:
            problems.append(f"{self.root}: the labels of the fields of view differ in size ({sorted(shapes)}).")
            return None
        frame = next(iter(shapes))
        if abs(frame[0] / image[0] - frame[1] / image[1]) > 1e-3:
            problems.append(f"{self.root}: images ({image[0]} x {image[1]}) and labels ({frame[0]} x {frame[1]}) do not show the same field of view.")
            return None
        if frame != image:
            self._warnings.append(
                f"Images have {image[0]} x {image[1]} pixels, labels {frame[0]} x {frame[1]}: the images are taken as binned by {frame[0] / image[0]:g}."
            )
        return frame

    def _read_labels(self, fov: int) -> np.ndarray:
        page = self._label_pages[fov]
        with tiffs.PageReader(page) as reader:
            return reader.rows(0, page.shape[0]).astype(np.int32)

    def _local_rows(self, problems: list[str]) -> cosmx_geometry.LocalRows | None:
        try:
            table = tables.sample(self.layout.tx, {c: pa.float64() for k, c in self._columns.items() if k not in ("gene", "z")})
        except InputError as error:
            problems += error.problems
            return None
        column = {k: pc.fill_null(table.column(c), np.nan).to_numpy() for k, c in self._columns.items() if k not in ("gene", "z")}
        keep = np.isfinite(column["fov"]) & np.isfinite(column["x"]) & np.isfinite(column["y"])
        keep &= np.isin(column["fov"], list(self._placed))
        column = {k: v[keep] for k, v in column.items()}
        cell = np.nan_to_num(column["cell"]).astype(np.int64) if "cell" in column else np.zeros(keep.sum(), np.int64)
        return cosmx_geometry.LocalRows(column["fov"].astype(np.int64), cell, column["x"], column["y"], column.get("x_global"), column.get("y_global"))

    def _signs(
        self, rows: cosmx_geometry.LocalRows, generation: str, problems: list[str]
    ) -> tuple[tuple[int, int], tuple[cosmx_geometry.AxisFit, cosmx_geometry.AxisFit]]:
        usual = (1, 1) if generation == "A" else (1, -1)
        fits = []
        for axis, local, world in (("x", rows.x, rows.x_global), ("y", rows.y, rows.y_global)):
            fit = cosmx_geometry.AxisFit(0, {}) if world is None else cosmx_geometry.fit_axis(axis, local, world, rows.fov)
            problems += [f"{self.layout.tx}: {p}" for p in fit.problems]
            fits.append(fit)
        if not all(f.sign for f in fits):
            self._warnings.append(
                f"The transcripts do not show how global coordinates run against local ones (too few rows or no columns x_global_px, y_global_px): "
                f"those usual for generation {generation} are taken."
            )
        return tuple(f.sign or u for f, u in zip(fits, usual, strict=True)), tuple(fits)

    def _pixel_size(
        self,
        ratio: float | None,
        positions: dict[int, tuple[float, float]],
        unit: str,
        fits: tuple[cosmx_geometry.AxisFit, ...],
        image: tuple[int, int],
        frame: tuple[int, int],
        generation: str,
        problems: list[str],
    ) -> tuple[float, str]:
        """Size of the table's pixel in µm, and where it comes from."""
        tiff = cosmx_files.search(self._description, "PixelSize_um")
        sources = {
            "px and mm of the positions": ratio,
            "mm of the positions against px of the transcripts": cosmx_geometry.pixel_um([f.offsets for f in fits], positions) if unit == "mm" else None,
            "ExptConfig.txt": cosmx_files.config_pixel_um(self.layout.config),
            "TIFF metadata": float(tiff) * image[0] / frame[0] if isinstance(tiff, (int, float)) and 0.01 <= tiff <= 5 else None,
        }
        sources = {name: size for name, size in sources.items() if size}
        if self.options.pixel_size_um:
            size, source = self.options.pixel_size_um, "option pixel_size_um"
        elif sources:
            source, size = next(iter(sources.items()))
        elif generation == "A" and frame == cosmx_files.LEGACY_FRAME:
            size, source = cosmx_files.LEGACY_PIXEL_UM, "legacy frame"
            self._warnings.append(
                "The files do not say the pixel size. Fields of view of 5472 x 3648 px are those of the 2022 instruments, whose pixel is 0.18 µm: it is taken."
            )
        else:
            problems.append(f"{self.root}: no file says the pixel size (px and mm of the positions, ExptConfig.txt, TIFF metadata); give it as pixel_size_um.")
            return 0.0, ""
        for other, value in sources.items():
            if abs(value / size - 1) > _AGREE:
                self._warnings.append(f"Pixel size {size:.5f} µm ({source}) is used, but by {other} it is {value:.5f} µm.")
        return size, source

    def _flip(self, rows: cosmx_geometry.LocalRows, frame: tuple[int, int], sign_y: int, problems: list[str]) -> tuple[str, dict[str, Any]]:
        flip, evidence = cosmx_orientation.by_labels(rows, self._label_pages, self._read_labels, str(self.root), problems, self._warnings)
        if flip is not None:
            return flip, evidence
        return cosmx_orientation.by_density(rows, self._fovs, frame, sign_y, self._thumbnail, self._warnings)

    def _thumbnail(self, fov: int, shape: tuple[int, int]) -> np.ndarray:
        import cv2

        path = self.layout.images[fov]
        if fov in self._pages:
            planes = []
            for page in self._pages[fov]:
                with tiffs.PageReader(page) as reader:
                    planes.append(cv2.resize(reader.rows(0, page.shape[0]), shape[::-1], interpolation=cv2.INTER_AREA))
            return np.stack(planes)
        return np.moveaxis(cv2.resize(images.read_picture(path), shape[::-1], interpolation=cv2.INTER_AREA), -1, 0)

    def _offsets(
        self,
        positions: dict[int, tuple[float, float]],
        unit: str,
        table_um: float,
        fits: tuple[cosmx_geometry.AxisFit, ...],
        signs: tuple[int, int],
        problems: list[str],
    ) -> tuple[list[dict[int, float]], list[float]]:
        """Global coordinate of local 0 for each FOV, x and y: position plus the shift that the transcripts show."""
        factor = 1000 / table_um if unit == "mm" else 1.0
        result, shifts = [], []
        for axis, fit in enumerate(fits):
            at = {f: positions[f][axis] * factor for f in self._placed}
            shift, spread, n = cosmx_geometry.shift_of(fit.offsets, at)
            if spread > cosmx_geometry.MAX_SPREAD_PX:
                problems.append(
                    f"{self.layout.positions}: the positions and the transcripts disagree in {'xy'[axis]} by amounts that differ between fields of view "
                    f"(up to {spread:.0f} px). Both tables must come from one export."
                )
            if n and abs(shift) > 1 and unit == "px":
                self._warnings.append(
                    f"Transcripts lie {shift:.0f} px from the positions of their fields of view in {'xy'[axis]}, equally in all: that is taken into account."
                )
            result.append({f: v + shift for f, v in at.items()})
            shifts.append(round(shift, 3))
        return result, shifts

    def choose_planes(self) -> dict[str, Any]:
        """See `RawSample.choose_planes`."""
        return {"choice": "single", "planes": {c.name: c.planes for c in self.facts.channels}}

    def strips(self, rows: int, scratch: Path) -> Iterator[np.ndarray]:
        """See `RawSample.strips`."""

        def open_fov(fov: int) -> images.Picture | images.Pages:
            if fov in self._pages:
                return images.Pages([self._pages[fov][i] for i in self._order])
            return images.Picture(self.layout.images[fov], [images.COMPOSITE[c.name] for c in self.facts.channels], scratch)

        origins = {f: self.placement.origin_px[f] for f in self._fovs}
        yield from images.stitch(open_fov, origins, self.facts.shape, self._image, rows)

    def transcripts(self) -> Iterator[pa.Table]:
        """See `RawSample.transcripts`."""
        start = 0
        for block in tables.stream(self.layout.tx, self._types()):
            yield self._normal(block, start)
            start += block.num_rows

    def transcript_sample(self) -> pa.Table:
        """See `RawSample.transcript_sample`."""
        return self._normal(tables.sample(self.layout.tx, self._types()), 0)

    def _types(self) -> dict[str, pa.DataType]:
        return {c: pa.string() if k == "gene" else pa.float64() for k, c in self._columns.items() if k not in ("x_global", "y_global")}

    def _normal(self, block: pa.Table, start: int) -> pa.Table:
        numbers = {k: pc.fill_null(block.column(c), np.nan).to_numpy() for k, c in self._columns.items() if k in ("fov", "x", "y", "z", "cell")}
        n = block.num_rows
        fov = np.nan_to_num(numbers["fov"], nan=-1).astype(np.int64)
        px, py = self.placement.mosaic_px(fov, numbers["x"], numbers["y"])
        pixel = self.facts.pixel_size_um
        cell = np.nan_to_num(numbers["cell"]).astype(np.int64) if "cell" in numbers else np.zeros(n, np.int64)
        pieces = [pa.scalar("c"), pa.array(fov).cast(pa.string()), pa.array(cell).cast(pa.string())]
        names = pc.if_else(pa.array(cell > 0), pc.binary_join_element_wise(*pieces, "_"), pa.scalar(None, pa.string()))
        z = np.nan_to_num(numbers.get("z", np.zeros(n))).astype(np.float32)
        gene = block.column(self._columns["gene"])
        control = pc.fill_null(pc.match_substring_regex(gene, CONTROL), False)
        table = pa.table([np.arange(start, start + n), px * pixel, py * pixel, z, gene, control, names], schema=TRANSCRIPT_SCHEMA)
        if self.options.fovs is None:
            return table
        return table.filter(pa.array(np.isin(fov, list(self.options.fovs))))

    def vendor_cells(self, wanted_plane: int | None) -> tuple[list[str], list[Any], dict[str, int]]:
        """See `RawSample.vendor_cells`."""
        if self._label_pages:
            return cosmx_cells.from_labels(sorted(self._label_pages), self._read_labels, self.placement, self.facts.pixel_size_um)
        if self.layout.polygons:
            return cosmx_cells.from_table(self.layout.polygons, self.placement, self.facts.pixel_size_um)
        return [], [], {}


def _listing(numbers: list[int]) -> str:
    """Numbers as ranges, e.g. `1-20, 33`."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    text = [f"{a}-{b}" if b > a else str(a) for a, b in parts]
    return ", ".join(text[:12]) + (" ..." if len(text) > 12 else "")
