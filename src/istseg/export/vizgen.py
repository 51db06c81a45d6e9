"""Files in the form of Vizgen's post-processing tool (VPT), which the MERSCOPE Vizualizer and its users' scripts read."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from istseg.artifacts.files import whole
from istseg.export import tables
from istseg.export.result import Result

PLANE_UM = 1.5
"""Distance of the planes of a MERSCOPE."""


def write(result: Result, folder: Path) -> None:
    """Write `cell_boundaries.parquet`, `cell_by_gene.csv`, `cell_metadata.csv`, `detected_transcripts.csv`, `images/micron_to_mosaic_pixel_transform.csv`.

    `EntityID` is the cell's label; `Name` and `cell_metadata.csv` tell the `cell_id`. As VPT does for a segmentation in 2D, a cell's polygon is repeated
    on every plane on which transcripts were detected.
    """
    with whole(folder) as part:
        part.mkdir()
        planes = sorted({round(float(z)) for z in result.sample.transcripts.get("by_plane", {})}) or [0]
        _boundaries(result, planes, part / "cell_boundaries.parquet")
        tables.write_counts(result, pd.DataFrame({"cell": result.entity_ids}), part / "cell_by_gene.csv")
        _metadata(result, len(planes), part / "cell_metadata.csv")
        _transcripts(result, part / "detected_transcripts.csv")
        (part / "images").mkdir()
        np.savetxt(part / "images" / "micron_to_mosaic_pixel_transform.csv", result.sample.affine)


def _boundaries(result: Result, planes: list[int], path: Path) -> None:
    n, k = len(result.cells), len(planes)
    polygons = result.cells.geometry.to_numpy()
    multi = np.array([shapely.MultiPolygon([p]) if p.geom_type == "Polygon" else p for p in polygons], dtype=object)
    plane = np.tile(np.arange(k), n)
    table = gpd.GeoDataFrame(
        {
            "ID": np.arange(n * k, dtype=np.int64),
            "EntityID": np.repeat(result.entity_ids, k),
            "ZIndex": np.asarray(planes, np.int64)[plane],
            "Geometry": gpd.GeoSeries(np.repeat(multi, k)),
            "Type": "cell",
            "ZLevel": (np.asarray(planes, float)[plane] + 1) * PLANE_UM,
            "Name": np.repeat(result.cells["cell_id"].to_numpy(dtype=object), k),
            "ParentID": pd.array([None] * (n * k), dtype="Int64"),
            "ParentType": pd.Series([None] * (n * k), dtype="string"),
        },
        geometry="Geometry",
    )
    table.to_parquet(path, index=False)


def _metadata(result: Result, n_planes: int, path: Path) -> None:
    obs, polygons = result.table.obs, result.cells.geometry.to_numpy()
    area = shapely.area(polygons)
    bounds = shapely.bounds(polygons).reshape(-1, 4)
    table = pd.DataFrame(
        {
            "EntityID": result.entity_ids,
            "fov": np.full(len(obs), np.nan),
            "volume": area * PLANE_UM * n_planes,
            "center_x": obs["centroid_x_um"].to_numpy(),
            "center_y": obs["centroid_y_um"].to_numpy(),
            "min_x": bounds[:, 0],
            "min_y": bounds[:, 1],
            "max_x": bounds[:, 2],
            "max_y": bounds[:, 3],
            "anisotropy": _anisotropy(polygons),
            "transcript_count": (obs["n_transcripts"] + obs["n_control"]).to_numpy(),
            "perimeter_area_ratio": shapely.length(polygons) / area,
            "solidity": area / shapely.area(shapely.convex_hull(polygons)),
            **{c: obs[c].to_numpy() for c in ("cell_id", "qc_flag", "qc_reason", "is_spurious", "is_inconsistent", "background_fraction")},
        }
    )
    table.to_csv(path, index=False)


def _anisotropy(polygons: np.ndarray) -> np.ndarray:
    """(n,) long side over short side of the smallest rotated rectangle around each polygon."""
    corners = [shapely.get_coordinates(r)[:3] for r in shapely.minimum_rotated_rectangle(polygons)]
    sides = np.array([np.linalg.norm(np.diff(c, axis=0), axis=1) for c in corners]).reshape(-1, 2)
    return sides.max(axis=1, initial=0) / np.maximum(sides.min(axis=1, initial=np.inf), 1e-9) if len(sides) else np.empty(0)


def _transcripts(result: Result, path: Path) -> None:
    """All transcripts with the `EntityID` of their cell, −1 outside; `x`, `y` are pixels of the mosaic, which is one field of view (0)."""
    names = {name: i for i, name in enumerate([*result.sample.genes, *result.sample.controls])}
    done = 0
    with open(path, "wb") as stream:
        for i, (frame, px, cell) in enumerate(tables.transcripts(result, result.entity_ids, outside=-1)):
            columns = {
                "": np.arange(done, done + len(frame)),
                "barcode_id": frame["gene"].astype(object).map(names).to_numpy(np.int64),
                "global_x": frame["x"],
                "global_y": frame["y"],
                "global_z": frame["z"].to_numpy(np.float64),
                "x": px[:, 0],
                "y": px[:, 1],
                "fov": np.zeros(len(frame), np.int64),
                "gene": frame["gene"].astype(str).to_numpy(dtype=object),
                "transcript_id": frame["transcript_id"],
                "cell_id": cell,
            }
            tables.append(stream, columns, header=i == 0)
            done += len(frame)
