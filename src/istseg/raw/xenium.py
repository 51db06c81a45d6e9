"""Xenium (10x Genomics): the output folder of a region, Xenium Onboard Analysis (XOA) 1 to 4.

The frame `micron` is the instrument's own: pixel × pixel size, y down, no offset. Images are those focused by the instrument; transcripts below the quality
that the instrument's own counts ask for (Q20) are left out and told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
import tifffile

from istseg.errors import InputError
from istseg.raw import mosaics, tables, tiff_header, tiffs
from istseg.raw.base import TRANSCRIPT_SCHEMA, Channel, Facts, RawSample, assign_roles, refuse_special_files
from istseg.raw.polygons import single

NUCLEUS = r"dapi|dna"
MEMBRANE = r"atp1a1.*|boundary|18s.*|interior[ _-]?rna"
"""Boundary stain and ribosomal RNA; `alphaSMA/Vimentin` marks some cells only and stays in the image."""
CONTROL = r"(?i)^(negcontrol|blank|antisense|unassignedcodeword|deprecatedcodeword|intergenic|genomiccontrol)"
UNASSIGNED = ("-1", "UNASSIGNED", "")
MIN_QUALITY = 20.0
TRANSCRIPT_FILES = ("transcripts.parquet", "transcripts.csv.gz", "transcripts.csv")
BOUNDARY_FILES = ("cell_boundaries.parquet", "cell_boundaries.csv.gz", "cell_boundaries.csv")
_CHANNEL_FILE = re.compile(r"(morphology_focus_(?P<old>\d{4})|ch(?P<new>\d{4})_(?P<name>.+))\.ome\.tiff?", re.IGNORECASE)


class XeniumSample(RawSample):
    """The folder that holds `experiment.xenium`."""

    platform = "xenium"

    @classmethod
    def root_of(cls, folder: Path, names: set[str], top: Path) -> Path | None:
        """See `RawSample.root_of`."""
        return folder if "experiment.xenium" in names else None

    def inspect(self) -> Facts:
        """See `RawSample.inspect`."""
        problems: list[str] = []
        warnings: list[str] = []
        root = self.root
        if root.is_dir():
            refuse_special_files(root)
        experiment = _experiment(root)
        if self.options.fovs is not None:
            problems.append(f"{root}: fovs are only for CosMx; a Xenium sample is one region.")
        if self.options.z_planes not in ("focus", "all", "0"):
            warnings.append(f"z_planes {self.options.z_planes} is not used: the focused images of a Xenium have one plane.")
        if self.options.pixel_size_um is not None:
            warnings.append("pixel_size_um is not used: experiment.xenium says it.")
        pixel = experiment.get("pixel_size")
        if not isinstance(pixel, (int, float)) or not 0.01 <= pixel <= 5:
            problems.append(f"{root / 'experiment.xenium'}: says no usable pixel_size ({pixel!r}). Copy the file again.")
        step = experiment.get("z_step_size")
        self._step = float(step) if isinstance(step, (int, float)) and step > 0 else 3.0
        self.pages = _find_images(root, problems, warnings)
        shapes = {page.shape for page in self.pages.values()}
        if len(shapes) > 1:
            problems.append(f"{root}: the images of the stains differ in size ({', '.join(f'{h} x {w}' for h, w in sorted(shapes))}).")
        roles = assign_roles(list(self.pages), self.options, NUCLEUS, MEMBRANE, str(root), problems, warnings) if self.pages else []
        self._table = _one_of(root, TRANSCRIPT_FILES)
        if self._table is None:
            problems.append(f"{root}: has no transcript table; expected one of {', '.join(TRANSCRIPT_FILES)}.")
        self._columns = _columns(self._table, problems) if self._table else {}
        self._cells = _one_of(root, BOUNDARY_FILES)
        if problems:
            raise InputError(problems)
        if self._cells is None:
            warnings.append("There are no vendor cells (cell_boundaries): no comparison with the vendor's segmentation.")
        height, width = next(iter(shapes))
        version = str(experiment.get("analysis_sw_version", "unknown"))
        self.facts = Facts(
            generation=version,
            channels=[Channel(name, role, [0], self.pages[name].dtype) for name, role in roles],
            planes=[0],
            height_px=height,
            width_px=width,
            pixel_size_um=float(pixel),
            micron_to_pixel=np.diag([1 / pixel, 1 / pixel, 1.0]),
            tables=[p for p in (self._table, self._cells) if p],
            cells_from=self._cells.name if self._cells else None,
            warnings=warnings,
            details={"region": experiment.get("region_name"), "analysis_version": version, "min_quality": MIN_QUALITY, "z_step_um": self._step},
        )
        return self.facts

    def choose_planes(self) -> dict[str, Any]:
        """See `RawSample.choose_planes`."""
        return {"choice": "single", "planes": {c.name: c.planes for c in self.facts.channels}}

    def pixels(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """See `RawSample.pixels`."""
        return tiffs.blocks([self.pages[c.name] for c in self.facts.channels if c.role != "other"], (y0, y1, x0, x1))

    def strips(self, rows: int, scratch: Path) -> Iterator[np.ndarray]:
        """See `RawSample.strips`."""
        return mosaics.strips([[self.pages[c.name]] for c in self.facts.channels], rows)

    def transcripts(self) -> Iterator[pa.Table]:
        """See `RawSample.transcripts`."""
        start = poor = 0
        for block in tables.stream(self._table, self._types()):
            table = self._normal(block, start)
            start += block.num_rows
            poor += block.num_rows - table.num_rows
            yield table
        if poor:
            self.facts.warnings.append(
                f"{poor} of {start} transcripts have a quality (qv) below {MIN_QUALITY:g} and were left out, as in the instrument's counts."
            )

    def transcript_sample(self) -> pa.Table:
        """See `RawSample.transcript_sample`."""
        return self._normal(tables.sample(self._table, self._types()), 0)

    def _types(self) -> dict[str, pa.DataType]:
        return {column: pa.string() if key in ("gene", "cell") else pa.float64() for key, column in self._columns.items()}

    def _normal(self, block: pa.Table, start: int) -> pa.Table:
        n = block.num_rows
        gene = block.column(self._columns["gene"])
        cell = block.column(self._columns["cell"]) if "cell" in self._columns else pa.nulls(n, pa.string())
        cell = pc.if_else(pc.is_in(cell, pa.array(UNASSIGNED)), pa.scalar(None, pa.string()), cell)
        z = np.zeros(n)
        if "z" in self._columns:
            z = np.floor(np.nan_to_num(pc.fill_null(block.column(self._columns["z"]), 0.0).to_numpy()) / self._step)
        control = pc.fill_null(pc.match_substring_regex(gene, CONTROL), False)
        x, y = (block.column(self._columns[axis]) for axis in "xy")
        table = pa.table([np.arange(start, start + n), x, y, pa.array(z.astype(np.float32)), gene, control, cell], schema=TRANSCRIPT_SCHEMA)
        if "quality" not in self._columns:
            return table
        return table.filter(pc.greater_equal(pc.fill_null(block.column(self._columns["quality"]), 0.0), MIN_QUALITY))

    def vendor_cells(self, wanted_plane: int | None) -> tuple[list[str], list[Any], dict[str, int]]:
        """See `RawSample.vendor_cells`. One row of the table for each vertex."""
        if self._cells is None:
            return [], [], {}
        names = tables.header(self._cells)
        wanted = {"cell_id": pa.string(), "vertex_x": pa.float64(), "vertex_y": pa.float64()}
        if missing := [name for name in wanted if name not in names]:
            raise InputError(f"{self._cells}: lacks the columns {', '.join(missing)}; it has {', '.join(names[:12])}.")
        blocks = list(tables.stream(self._cells, wanted))
        if not blocks:
            return [], [], {}
        table = pa.concat_tables(blocks)
        ids = table["cell_id"].combine_chunks().dictionary_encode()
        codes, xy = ids.indices.to_numpy(), np.column_stack([table["vertex_x"].to_numpy(), table["vertex_y"].to_numpy()])
        order = np.argsort(codes, kind="stable")
        counts: dict[str, int] = {}
        found: dict[str, Any] = {}
        edges = np.flatnonzero(np.diff(codes[order])) + 1
        for rows in np.split(order, edges):
            ring = xy[rows][np.isfinite(xy[rows]).all(axis=1)]
            polygon = single(shapely.Polygon(ring) if len(ring) >= 3 else None, counts)
            if polygon is not None:
                found[ids.dictionary[int(codes[rows[0]])].as_py()] = polygon
        return list(found), list(found.values()), counts


def _experiment(root: Path) -> dict[str, Any]:
    """`experiment.xenium`.

    Raises
    ------
    InputError
        If the folder or the file is not there or is no JSON.
    """
    path = root / "experiment.xenium"
    if not root.is_dir():
        raise InputError(f"{root}: no such folder. Is the path in the samplesheet right?")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        listing = ", ".join(sorted(e.name for e in root.iterdir())[:8]) or "nothing"
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the output folder of one region, it holds: {listing}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}). Was it copied in full?") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: must be a JSON object. Was it edited?")
    return found


def _one_of(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).exists()), None)


def _columns(path: Path, problems: list[str]) -> dict[str, str]:
    try:
        names = tables.header(path)
    except InputError as error:
        problems += error.problems
        return {}
    wanted = {"x": "x_location", "y": "y_location", "z": "z_location", "gene": "feature_name", "cell": "cell_id", "quality": "qv"}
    missing = [wanted[key] for key in ("x", "y", "gene") if wanted[key] not in names]
    if missing:
        problems.append(f"{path}: lacks the columns {', '.join(missing)}; it has {', '.join(names[:12])}.")
        return {}
    return {key: column for key, column in wanted.items() if column in names}


def _find_images(root: Path, problems: list[str], warnings: list[str]) -> dict[str, tiffs.PageInfo]:
    """Stain → full-resolution page of the focused images: one file for DAPI (XOA 1), or one for each stain in `morphology_focus` (XOA 2 and later)."""
    folder = root / "morphology_focus"
    files: list[tuple[Path, str | None]] = [(root / "morphology_focus.ome.tif", "DAPI")]
    if folder.is_dir():
        matches = [(path, match) for path in sorted(folder.iterdir()) if (match := _CHANNEL_FILE.fullmatch(path.name))]
        names = _channel_names(matches[0][0]) if matches else []
        files = []
        for path, match in matches:
            index = int(match["old"] or match["new"])
            files.append((path, names[index] if index < len(names) else match["name"]))
    elif not files[0][0].exists():
        problems.append(f"{root}: has no focused images: neither morphology_focus.ome.tif nor the folder morphology_focus.")
        return {}
    if not files:
        problems.append(f"{folder}: holds no image named morphology_focus_0000.ome.tif or ch0000_dapi.ome.tif.")
    pages: dict[str, tiffs.PageInfo] = {}
    for number, (path, name) in enumerate(files):
        if not name:
            name = f"channel_{number + 1}"
            warnings.append(f"{path.name} does not name its stain; it is called {name}.")
        if name in pages:
            problems.append(f"{path}: is a second image of the stain {name} beside {pages[name].path.name}.")
            continue
        read = tiffs.inspect(path, problems)
        if read:
            pages[name] = read[0]
    return pages


def _channel_names(path: Path) -> list[str]:
    """Names of the channels in the OME metadata of the first file, which describes all files."""
    try:
        if tiff_header.problem(path):
            return []
        with tifffile.TiffFile(path) as tif:
            tree = ElementTree.fromstring(tif.pages[0].description)
    except (*tiffs.DAMAGE, ElementTree.ParseError):
        return []  # a damaged file is told by tiffs.inspect
    return [channel.get("Name") or "" for channel in tree.iter() if channel.tag.endswith("}Channel")]
