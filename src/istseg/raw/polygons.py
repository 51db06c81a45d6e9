"""Vendor polygons made valid: one polygon for each cell."""

from __future__ import annotations

from typing import Any

import shapely


def single(geometry: Any, counts: dict[str, int]) -> shapely.Polygon | None:
    """One valid polygon without holes, or None; `counts` tells what had to be changed (`repaired`, `several_parts`) or left out (`empty`).

    Of several parts the largest is kept: a cell is one polygon everywhere in the pipeline.
    """
    if geometry is None or geometry.is_empty:
        counts["empty"] = counts.get("empty", 0) + 1
        return None
    if not geometry.is_valid:
        geometry = shapely.make_valid(geometry)
        counts["repaired"] = counts.get("repaired", 0) + 1
    geometry = shapely.force_2d(geometry)
    parts = [p for p in shapely.get_parts(geometry) if p.geom_type in ("Polygon", "MultiPolygon") and p.area > 0]
    parts = [q for p in parts for q in shapely.get_parts(p)]
    if not parts:
        counts["empty"] = counts.get("empty", 0) + 1
        return None
    if len(parts) > 1:
        counts["several_parts"] = counts.get("several_parts", 0) + 1
    largest = max(parts, key=lambda p: p.area)
    return shapely.orient_polygons(shapely.Polygon(largest.exterior))
