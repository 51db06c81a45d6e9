"""Annotated cells of a sample, what segmentations are measured against: GeoJSON (QuPath, napari), a label TIFF, or a table of cells (`cells.py`).

The frame is said, never guessed: GeoJSON is in pixels of the full-resolution mosaic (x right, y down) unless `annotations_unit` says `um`; a label TIFF has the
size of the mosaic or of the working grid; a table of cells is in µm. The kind of a file is known by its first bytes, its name does not matter.

A feature of GeoJSON whose classification is `region` (QuPath: `Region*`) is no cell: inside it *every* cell is annotated. Without such a region nothing is
assumed to be whole, and what needs whole truth is not measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from istseg.artifacts import cells as cells_file
from istseg.artifacts.contours import outlines
from istseg.artifacts.files import whole
from istseg.artifacts.sample import Sample, apply_affine
from istseg.errors import InputError
from istseg.raw import tiffs
from istseg.resample import working_size

UNITS = ("px", "um")
REGION = "region"
"""Classification of a polygon inside which every cell is annotated."""
LABEL_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_BAND = 256
_SHOWN = 5
_PLAUSIBLE_UM2 = (5.0, 5000.0)
"""Area of annotated cells: if the median lies outside, the unit is probably wrong."""


@dataclass(frozen=True)
class Frame:
    """The image that annotations lie on.

    Attributes
    ----------
    micron_to_pixel
        (3, 3), µm → full-resolution pixel (x, y).
    height_px, width_px, pixel_size_um
        Of the full-resolution mosaic.
    working_um
        Size of a working pixel.
    """

    micron_to_pixel: np.ndarray
    height_px: int
    width_px: int
    pixel_size_um: float
    working_um: float

    @classmethod
    def of(cls, sample: Sample, working_um: float) -> Frame:
        """Of a converted sample."""
        return cls(sample.affine, sample.height_px, sample.width_px, sample.pixel_size_um, working_um)


@dataclass
class Annotations:
    """Annotated cells.

    Attributes
    ----------
    ids
        Of the file where all its features have one and none repeats (label of an image, `cell_id` of a table), else their numbers from 1.
    polygons
        (n,) valid polygons or multipolygons, µm.
    region
        Where every cell is annotated, µm; None where nothing says so.
    warnings
        Sentences for the user.
    """

    ids: list[str]
    polygons: np.ndarray
    region: shapely.Geometry | None = None
    warnings: list[str] = field(default_factory=list)


def read(path: str | Path, unit: str | None, frame: Frame) -> Annotations:
    """Read annotations.

    Parameters
    ----------
    unit
        `px` or `um`, only for GeoJSON; None: `px`.

    Raises
    ------
    InputError
        With every problem of the file: what cannot be read, outlines that are no polygon or without area, cells or a region outside the image, a size that is
        neither the mosaic's nor that of the working grid.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); it should hold annotated cells.") from None
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _no_unit(path, unit, "a label image lies in pixels")
        found = _from_labels(path, frame)
    elif head[:4] == b"PAR1":
        _no_unit(path, unit, "a table of cells is in µm")
        found = _from_table(path)
    elif head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        found = _from_geojson(path, unit or "px", frame)
    else:
        raise InputError(f"{path}: is neither GeoJSON nor TIFF nor a table of cells (parquet).")
    problems: list[str] = []
    _check_cells(path, found, frame, unit, problems)
    _check_region(path, found, frame, unit, problems)
    if problems:
        raise InputError(problems)
    return found


def write_geojson(path: str | Path, cells: Iterable[tuple[str, shapely.Polygon]], region: shapely.Geometry | None) -> None:
    """Write cells (id, polygon in full-resolution pixels), one feature a line as QuPath reads them, and the region where they are all there."""
    with whole(path) as part, open(part, "w", encoding="utf-8") as stream:
        stream.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for name, polygon, classification in _features(cells, region):
            properties = {"objectType": "annotation", **({"classification": {"name": classification}} if classification else {})}
            geometry = json.loads(shapely.to_geojson(shapely.transform(polygon, lambda xy: np.round(xy, 2))))
            stream.write(separator + json.dumps({"type": "Feature", "id": name, "geometry": geometry, "properties": properties}))
            separator = ",\n"
        stream.write("\n]}\n")


def _features(cells: Iterable[tuple[str, shapely.Polygon]], region: shapely.Geometry | None) -> Iterator[tuple[str, shapely.Geometry, str]]:
    if region is not None and not region.is_empty:
        yield REGION, region, REGION
    for name, polygon in cells:
        yield name, polygon, ""


def _no_unit(path: Path, unit: str | None, why: str) -> None:
    if unit is not None:
        raise InputError(f"{path}: annotations_unit is {unit!r}, but {why}; leave it empty.")


def _from_table(path: Path) -> Annotations:
    table = cells_file.read(path)
    return Annotations(table["cell_id"].tolist(), table.geometry.to_numpy())


def _from_labels(path: Path, frame: Frame) -> Annotations:
    """Outlines of a label image, read in bands: memory holds the rows that the cells of one band reach."""
    problems: list[str] = []
    pages = tiffs.inspect(path, problems, LABEL_TYPES)
    if problems:
        raise InputError(problems)
    if len(pages) != 1:
        raise InputError(f"{path}: has {len(pages)} pages; annotations are one label image.")
    factor = frame.working_um / frame.pixel_size_um
    sizes = {(frame.height_px, frame.width_px): 1.0, (working_size(frame.height_px, factor), working_size(frame.width_px, factor)): factor}
    scale = sizes.get(pages[0].shape)
    if scale is None:
        listing = " nor ".join(f"{h} x {w}" for h, w in sizes)
        raise InputError(f"{path}: has {pages[0].shape[0]} x {pages[0].shape[1]} pixels, neither {listing} (mosaic, working grid): it is of another image.")
    height = pages[0].shape[0]
    with tiffs.PageReader(pages[0]) as reader:
        bands = [_band_of_labels(reader.rows(y, min(y + _BAND, height)), y) for y in range(0, height, _BAND)]
        seen = pd.concat(bands, ignore_index=True).groupby("label").agg(first=("top", "min"), last=("top", "max"), pixels=("pixels", "sum"))
        if (seen.index < 0).any():
            raise InputError(f"{path}: has the label {seen.index.min()}; labels are positive, 0 is background.")
        labels, polygons = [], []
        for top, group in seen.groupby("first"):
            rows = reader.rows(top, min(int(group["last"].max()) + _BAND, height))
            columns = np.flatnonzero(np.isin(rows, group.index).any(0))
            # Consecutive numbers: an annotation tool may count from anywhere, and the outlines' look-up takes 32 bits.
            block = rows[:, columns[0] : columns[-1] + 1]
            values, numbers = np.unique(block, return_inverse=True)
            wanted = np.flatnonzero(np.isin(values, group.index))
            shift = int(values[0] != 0)
            own, drawn = outlines((numbers.reshape(block.shape) + shift).astype(np.int32), wanted + shift, (int(top), int(columns[0])))
            labels.append(values[own - shift])
            polygons.append(drawn)
    names = np.concatenate(labels) if labels else np.empty(0, int)
    shapes = np.concatenate(polygons) if polygons else np.empty(0, object)
    pixels = seen["pixels"].reindex(names).to_numpy()
    order = np.argsort(names)
    torn = names[order][np.abs(shapely.area(shapes[order]) - pixels[order]) > np.maximum(0.1 * pixels[order], 8)] if len(names) else names
    warnings = [f"Annotations: labels {_listing(torn)} have several parts or holes: their largest part is taken, holes are filled."] if len(torn) else []
    to_micron = np.linalg.inv(frame.micron_to_pixel)
    placed = shapely.transform(shapes[order], lambda xy: apply_affine(to_micron, xy * scale))
    return Annotations([str(n) for n in names[order].tolist()], placed, None, warnings)


def _band_of_labels(rows: np.ndarray, top: int) -> pd.DataFrame:
    labels, pixels = np.unique(rows, return_counts=True)
    return pd.DataFrame({"label": labels, "pixels": pixels, "top": top})[labels != 0]


def _from_geojson(path: Path, unit: str, frame: Frame) -> Annotations:
    if unit not in UNITS:
        raise InputError(f"{path}: annotations_unit is {unit!r}; it should be px or um.")
    try:
        raw = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not valid GeoJSON ({error}). Was it cut off? Export it again.") from None
    wrong: dict[str, list[int]] = {}
    ids, shapes, is_region = [], [], []
    for number, feature in enumerate(_list_of(raw, path), 1):
        geometry = feature.get("geometry", feature) if isinstance(feature, dict) else None
        try:
            shape, classification = _polygon(geometry), _class_of(feature)
        except (ValueError, TypeError) as error:
            wrong.setdefault(str(error), []).append(number)
            continue
        shapes.append(shape)
        ids.append(feature.get("id"))
        is_region.append(classification == REGION)
    if wrong:
        raise InputError(
            [f"{path}: features {_listing(numbers)}: {what}. Draw cells as closed polygons and export them again." for what, numbers in wrong.items()]
        )
    region, polygons = np.array(is_region, bool), np.array(shapes, object)
    warnings: list[str] = []
    broken = np.flatnonzero(~shapely.is_valid(polygons)) if len(polygons) else np.empty(0, int)
    if len(broken):
        polygons[broken] = [_areas_of(p) for p in shapely.make_valid(polygons[broken])]
        warnings.append(
            f"Annotations: the outlines of features {_listing(broken + 1)} cross themselves and were repaired: look at them in the tool that drew them."
        )
    if unit == "px":
        to_micron = np.linalg.inv(frame.micron_to_pixel)
        polygons = shapely.transform(polygons, lambda xy: apply_affine(to_micron, xy))
    known = [str(i) for i, r in zip(ids, is_region, strict=True) if not r and i not in (None, "")]
    cells = np.flatnonzero(~region)
    names = known if len(set(known)) == len(cells) else [str(i + 1) for i in cells]
    area = shapely.union_all(polygons[region]) if region.any() else None
    return Annotations(names, polygons[cells], area, warnings)


def _list_of(raw: Any, path: Path) -> list[Any]:
    """Features or geometries of whatever GeoJSON's writers put at the top."""
    if isinstance(raw, list):
        return raw
    kind = str(raw.get("type")) if isinstance(raw, dict) else ""
    inside = {"FeatureCollection": "features", "GeometryCollection": "geometries"}.get(kind)
    if inside:
        if not isinstance(raw.get(inside), list):
            raise InputError(f"{path}: is a {kind} without a list of {inside}.")
        return raw[inside]
    if kind in ("Feature", "Polygon", "MultiPolygon"):
        return [raw]
    raise InputError(f"{path}: is JSON, but neither a FeatureCollection nor a list of features; export the annotations as GeoJSON.")


def _class_of(feature: dict[str, Any]) -> str:
    """Name of the classification in small letters, "" without one. ValueError in words."""
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise ValueError("`properties` is no object of names and values")
    named = properties.get("classification")
    named = named.get("name") if isinstance(named, dict) else named
    # QuPath's own class is `Region*`: its asterisk tells that the class is ignored when cells are classified.
    return str(named or "").strip().rstrip("*").lower()


def _polygon(geometry: Any) -> shapely.Geometry:
    """Polygon or multipolygon of a GeoJSON geometry; rings may be open. ValueError in words."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"{kind or 'no geometry'} is no polygon")
    parts = [geometry.get("coordinates")] if kind == "Polygon" else geometry.get("coordinates")
    if not isinstance(parts, list) or not parts or not all(isinstance(rings, list) and rings for rings in parts):
        raise ValueError("the outline is empty")
    polygons = [shapely.Polygon(rings[0], rings[1:]) for rings in ([_ring(r) for r in part] for part in parts)]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


def _ring(points: Any) -> np.ndarray:
    try:
        ring = np.array([p[:2] for p in points], float)
    except (TypeError, ValueError, IndexError, OverflowError):
        raise ValueError("the coordinates are no list of points") from None
    if ring.ndim != 2 or ring.shape[1:] != (2,) or not np.isfinite(ring).all():
        raise ValueError("the coordinates are no list of points")
    if len(np.unique(ring, axis=0)) < 3:
        raise ValueError("the outline has fewer than three corners")
    return ring


def _areas_of(shape: shapely.Geometry) -> shapely.Geometry:
    """The polygons of what a repair gives; lines and points have no area."""
    parts = [p for p in shapely.get_parts(shapely.get_parts(shape)) if p.geom_type == "Polygon"]
    return shapely.union_all(parts)


def _check_cells(path: Path, found: Annotations, frame: Frame, unit: str | None, problems: list[str]) -> None:
    """Area, place and repetition; `found` loses what is there twice."""
    if not len(found.polygons):
        problems.append(f"{path}: holds no annotated cell.")
        return
    area = shapely.area(found.polygons)
    names = np.array(found.ids, object)
    if (area <= 0).any():
        problems.append(f"{path}: cells {_listing(names[area <= 0])} have no area; draw them again or remove them.")
        return
    pixels = shapely.transform(found.polygons, lambda xy: apply_affine(frame.micron_to_pixel, xy))
    image = shapely.box(0, 0, frame.width_px, frame.height_px)
    inside = shapely.area(shapely.intersection(pixels, image)) / shapely.area(pixels)
    if (inside < 0.5).any():
        problems.append(
            f"{path}: {int((inside < 0.5).sum())} of {len(inside)} cells lie outside the image of {frame.width_px} x {frame.height_px} px (width x height), "
            f"e.g. {_listing(names[inside < 0.5])}. {_hint(pixels, image, frame, unit)}"
        )
    elif (inside < 0.99).any():
        found.warnings.append(f"Annotations: cells {_listing(names[inside < 0.99])} reach beyond the image.")
    _, first = np.unique(shapely.to_wkb(shapely.normalize(found.polygons)), return_index=True)
    if len(first) < len(names):
        twice = np.setdiff1d(np.arange(len(names)), first)
        found.warnings.append(f"Annotations: cells {_listing(names[twice])} are there twice with the same outline and count once.")
        keep = np.sort(first)
        found.ids, found.polygons = names[keep].tolist(), found.polygons[keep]
    median = float(np.median(area))
    if not _PLAUSIBLE_UM2[0] <= median <= _PLAUSIBLE_UM2[1]:
        found.warnings.append(f"Annotations: the median area of the cells is {median:.3g} µm²: is annotations_unit ({unit or 'px'}) right?")
    elif (area > _PLAUSIBLE_UM2[1]).any():
        large = names[area > _PLAUSIBLE_UM2[1]]
        found.warnings.append(
            f"Annotations: {_listing(large)} are larger than {_PLAUSIBLE_UM2[1]:g} µm² and count as cells; a region needs the classification `region`."
        )


def _check_region(path: Path, found: Annotations, frame: Frame, unit: str | None, problems: list[str]) -> None:
    """Area and place of the region, and whether annotated cells lie in it."""
    if found.region is None:
        return
    if found.region.area <= 0:
        problems.append(f"{path}: the region has no area; draw it again or remove it.")
        return
    pixels = shapely.transform(found.region, lambda xy: apply_affine(frame.micron_to_pixel, xy))
    image = shapely.box(0, 0, frame.width_px, frame.height_px)
    if shapely.intersection(pixels, image).area <= 0:
        problems.append(
            f"{path}: the region lies outside the image of {frame.width_px} x {frame.height_px} px (width x height). "
            f"{_hint(np.array([pixels], object), image, frame, unit)}"
        )
    elif not shapely.intersects(found.region, shapely.centroid(found.polygons)).any():
        found.warnings.append("Annotations: no annotated cell lies in the region, where every cell should be annotated: is it drawn in the right place?")


def _hint(pixels: np.ndarray, image: shapely.Geometry, frame: Frame, unit: str | None) -> str:
    """What to do about outlines outside the image, from what would bring them inside."""

    def fits(shapes: np.ndarray) -> bool:
        return bool(shapely.intersects(image, shapely.centroid(shapes)).mean() > 0.9)

    if fits(shapely.transform(pixels, lambda xy: xy[:, ::-1])):
        return "With x and y exchanged they lie inside: the file gives rows before columns; exchange them."
    if (unit or "px") == "px" and fits(shapely.transform(pixels, lambda xy: apply_affine(frame.micron_to_pixel, xy))):
        return "As µm they lie inside: set annotations_unit to um."
    if unit == "um" and fits(shapely.transform(pixels, lambda xy: apply_affine(np.linalg.inv(frame.micron_to_pixel), xy))):
        return "As pixels they lie inside: set annotations_unit to px."
    return "Are they of this sample, and of the mosaic's full resolution?"


def _listing(names: Iterable[Any]) -> str:
    names = [str(n) for n in names]
    return ", ".join(names[:_SHOWN]) + (f" ... ({len(names)})" if len(names) > _SHOWN else "")
