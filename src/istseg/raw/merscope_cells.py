"""Vendor cells of MERSCOPE: hdf5 files of the older software, GeoParquet of the newer one and of VPT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError
from istseg.progress import track
from istseg.raw import tables, tiffs
from istseg.raw.polygons import single

_EMPTY_WKB = 50
"""Bytes: a WKB without coordinates is shorter; the smallest ring takes 13 + 4·16."""


def from_hdf5(folder: Path, wanted_plane: int | None) -> tuple[list[str], list[Any], dict[str, int]]:
    """Cells of `feature_data_<fov>.hdf5`: `featuredata/<id>/zIndex_k/p_n/coordinates` (1, N, 2) in µm.

    The wanted plane is taken where a cell has it, else the middle one it has. Ids have up to 39 digits and stay text.

    Raises
    ------
    InputError
        If a file is damaged.
    """
    import h5py

    cells: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for path in track(sorted(folder.glob("*.hdf5")), "Vendor cells"):
        try:
            with h5py.File(path, "r") as stored:
                group = stored.get("featuredata")
                for cell in group if group is not None else []:
                    if cell in cells:
                        counts["repeated_id"] = counts.get("repeated_id", 0) + 1
                        continue
                    polygon = single(_hdf5_cell(group[cell], wanted_plane), counts)
                    if polygon is not None:
                        cells[cell] = polygon
        except (*tiffs.DAMAGE, shapely.errors.GEOSException) as error:
            raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}). Copy it again, or take it away to leave its cells out.") from None
    return list(cells), list(cells.values()), counts


def _hdf5_planes(cell: Any) -> dict[int, list[np.ndarray]]:
    """Plane → rings of the cell's parts (N, 2)."""
    planes = {}
    for name in cell:
        if not name.startswith("zIndex_"):
            continue
        rings = [np.asarray(cell[name][part]["coordinates"]).reshape(-1, 2) for part in sorted(cell[name]) if "coordinates" in cell[name][part]]
        rings = [r for r in rings if len(r) >= 3 and np.isfinite(r).all()]
        if rings:
            planes[int(name.removeprefix("zIndex_"))] = rings
    return planes


def _of_rings(rings: list[np.ndarray]) -> Any:
    parts = [shapely.Polygon(r) for r in rings]
    return parts[0] if len(parts) == 1 else shapely.union_all([p if p.is_valid else shapely.make_valid(p) for p in parts])


def _hdf5_cell(cell: Any, wanted_plane: int | None) -> Any:
    planes = _hdf5_planes(cell)
    if not planes:
        return None
    have = sorted(planes)
    return _of_rings(planes[wanted_plane if wanted_plane in planes else have[len(have) // 2]])


def planes_of_hdf5(folder: Path) -> Iterator[tuple[str, int, Any]]:
    """Every outline: id, plane, valid polygon in µm. Files that `from_hdf5` could read."""
    import h5py

    seen: set[str] = set()
    for path in track(sorted(folder.glob("*.hdf5")), "Planes of vendor cells"):
        with h5py.File(path, "r") as stored:
            group = stored.get("featuredata")
            for cell in group if group is not None else []:
                if cell in seen:
                    continue
                seen.add(cell)
                for z, rings in sorted(_hdf5_planes(group[cell]).items()):
                    polygon = single(_of_rings(rings), {})
                    if polygon is not None:
                        yield cell, z, polygon


def planes_of_parquet(path: Path, micron_to_pixel: np.ndarray | None) -> Iterator[tuple[str, int, Any]]:
    """Every outline of a file that `from_parquet` could read: id, plane, valid polygon in µm; nothing where the file names no plane.

    Parameters
    ----------
    micron_to_pixel
        (3, 3) where the outlines are in pixels, None where they are in µm.
    """
    names = tables.header(path)
    id_column = tables.find_column(names, "EntityID", "ID", "cell_id")
    geometry_column, plane_column = tables.find_column(names, "Geometry"), tables.find_column(names, "ZIndex")
    if plane_column is None:
        return
    inverse = None if micron_to_pixel is None else np.linalg.inv(micron_to_pixel)
    with pq.ParquetFile(path) as stored:
        for batch in stored.iter_batches(batch_size=1 << 14, columns=[id_column, plane_column, geometry_column]):
            geometries = shapely.from_wkb(np.array(batch.column(geometry_column).to_pylist(), object), on_invalid="ignore")
            for cell, z, geometry in zip(_as_text(batch.column(id_column), path), batch.column(plane_column).to_pylist(), geometries, strict=True):
                polygon = single(geometry, {})
                if polygon is not None and z is not None:
                    yield cell, int(z), polygon if inverse is None else shapely.transform(polygon, lambda xy: apply_affine(inverse, xy))


def from_parquet(
    path: Path, wanted_plane: int | None, micron_to_pixel: np.ndarray, shape: tuple[int, int]
) -> tuple[list[str], list[Any], dict[str, int], str | None, bool]:
    """Cells of a GeoParquet file: columns `EntityID` (or `ID`), `ZIndex`, `Geometry` (WKB).

    The wanted plane is taken where a cell has it, else the middle one it has. Files named `*mosaic_space*` are in mosaic pixels; where the name
    and the place of the cells disagree, the place decides and the note says so.

    Returns
    -------
    ids, polygons in µm, counts, note for the user or None, whether the file is in pixels.

    Raises
    ------
    InputError
        If the file is damaged or lacks a column.
    """
    names = tables.header(path)
    id_column = tables.find_column(names, "EntityID", "ID", "cell_id")
    geometry_column = tables.find_column(names, "Geometry")
    plane_column = tables.find_column(names, "ZIndex")
    if id_column is None or geometry_column is None:
        raise InputError(f"{path}: lacks the columns EntityID and Geometry; it has {', '.join(names[:12])}.")
    counts: dict[str, int] = {}
    try:
        rows = _chosen_rows(path, id_column, plane_column, geometry_column, wanted_plane, counts)
        cells = _geometries(path, id_column, geometry_column, rows, counts)
    except (pa.ArrowException, OSError, shapely.errors.GEOSException) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}). Copy it again.") from None
    polygons = list(cells.values())
    in_pixels, note = _frame(path, polygons, micron_to_pixel, shape)
    if in_pixels:
        inverse = np.linalg.inv(micron_to_pixel)
        polygons = list(shapely.transform(np.array(polygons, object), lambda xy: apply_affine(inverse, xy)))
    return list(cells), polygons, counts, note, in_pixels


def _chosen_rows(path: Path, id_column: str, plane_column: str | None, geometry_column: str, wanted: int | None, counts: dict[str, int]) -> set[int]:
    """Row of each cell that is used; the geometries themselves stay on disk."""
    planes: dict[str, list[tuple[int, int]]] = {}
    row = 0
    with pq.ParquetFile(path) as stored:
        columns = [c for c in (id_column, plane_column, geometry_column) if c]
        for batch in stored.iter_batches(batch_size=1 << 14, columns=columns):
            ids = _as_text(batch.column(id_column), path)
            zs = batch.column(plane_column).to_pylist() if plane_column else [0] * len(ids)
            sizes = [0 if g is None else len(g) for g in batch.column(geometry_column).to_pylist()]
            for cell, z, size in zip(ids, zs, sizes, strict=True):
                known = planes.setdefault(cell, [])
                if size > _EMPTY_WKB:
                    known.append((-1 if z is None else int(z), row))
                row += 1
    chosen = set()
    for known in planes.values():
        if not known:
            counts["empty"] = counts.get("empty", 0) + 1
            continue
        known.sort()
        chosen.add(next((r for z, r in known if z == wanted), known[len(known) // 2][1]))
    return chosen


def _geometries(path: Path, id_column: str, geometry_column: str, rows: set[int], counts: dict[str, int]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    row = 0
    with pq.ParquetFile(path) as stored:
        for batch in stored.iter_batches(batch_size=1 << 14, columns=[id_column, geometry_column]):
            keep = [i for i in range(batch.num_rows) if row + i in rows]
            row += batch.num_rows
            taken = batch.take(pa.array(keep, pa.int64()))
            geometries = shapely.from_wkb(np.array(taken.column(geometry_column).to_pylist(), object), on_invalid="ignore") if keep else []
            for cell, geometry in zip(_as_text(taken.column(id_column), path), geometries, strict=True):
                polygon = single(geometry, counts)
                if polygon is not None:
                    cells[cell] = polygon
    return cells


def _as_text(column: pa.Array, path: Path) -> list[str]:
    if pa.types.is_floating(column.type):
        raise InputError(f"{path}: the cell ids are floating-point numbers and have lost digits; export them as whole numbers or text.")
    return [str(v) for v in column.to_pylist()]


def _frame(path: Path, polygons: list[Any], micron_to_pixel: np.ndarray, shape: tuple[int, int]) -> tuple[bool, str | None]:
    """Whether the polygons are in pixels, and a note when the name says otherwise."""
    by_name = "mosaic_space" in path.name.lower()
    if not polygons:
        return by_name, None
    points = shapely.get_coordinates(shapely.point_on_surface(np.array(polygons, object)))

    def inside(xy: np.ndarray) -> float:
        return float(((xy >= 0) & (xy < [shape[1], shape[0]])).all(axis=1).mean())

    pixel, micron = inside(points), inside(apply_affine(micron_to_pixel, points))
    named, other = (pixel, micron) if by_name else (micron, pixel)
    if named >= 0.05 or other < 0.5:
        return by_name, None
    frame = "µm" if by_name else "pixels"
    return (
        not by_name,
        f"{path.name}: {other:.0%} of the vendor cells lie in the image when read as {frame}, {named:.0%} by the file's name; they are read as {frame}.",
    )
