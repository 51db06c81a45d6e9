"""Flat files in the form of a CosMx export (AtoMx 1.3), for the readers of Seurat, Giotto, squidpy and sopa; of samples of any platform.

The mosaic is one field of view (1) in pixels of a CosMx, whatever the sample's own are, because readers take the size of these for granted. `y_local_px` runs
down the image and `y_global_px` up, as the instrument's do: y_global = y of the field of view − y_local.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely

from istseg.artifacts.files import whole
from istseg.artifacts.sample import apply_affine
from istseg.export import tables
from istseg.export.result import Result

PIXEL_UM = 0.120280945
FOV = 1


def write(result: Result, folder: Path) -> None:
    """Write `<sample>_{exprMat_file,metadata_file,tx_file,fov_positions_file}.csv` and `<sample>-polygons.csv`.

    `cell_ID` is the place of the cell in the table, from 1; `istseg_id` of the metadata tells the cell's name. 0: outside of cells.
    """
    with whole(folder) as part:
        part.mkdir()
        name = result.sample.sample
        numbers = np.arange(1, result.table.n_obs + 1, dtype=np.int64)
        _positions(result, part / f"{name}_fov_positions_file.csv")
        tables.write_counts(result, pd.DataFrame({"fov": FOV, "cell_ID": numbers}), part / f"{name}_exprMat_file.csv")
        _metadata(result, numbers, part / f"{name}_metadata_file.csv")
        _polygons(result, numbers, part / f"{name}-polygons.csv")
        _transcripts(result, numbers, part / f"{name}_tx_file.csv")


def _local(result: Result, mosaic_px: np.ndarray) -> np.ndarray:
    """(n, 2) pixels of a CosMx from full-resolution pixels of the sample."""
    return mosaic_px * (result.sample.pixel_size_um / PIXEL_UM)


def _top(result: Result) -> float:
    """y_global of the image's upper edge, so that the image lies at y_global of 0 and more."""
    return float(result.sample.height_px * result.sample.pixel_size_um / PIXEL_UM)


def _coordinates(result: Result, local: np.ndarray, x: str = "x", y: str = "y") -> dict[str, np.ndarray]:
    values = local[:, 0], local[:, 1], local[:, 0], _top(result) - local[:, 1]
    names = f"{x}_local_px", f"{y}_local_px", f"{x}_global_px", f"{y}_global_px"
    return {name: np.round(value, 4) for name, value in zip(names, values, strict=True)}


def _positions(result: Result, path: Path) -> None:
    top = _top(result)
    row = {"fov": FOV, "x_global_px": 0.0, "y_global_px": top, "x_global_mm": 0.0, "y_global_mm": top * PIXEL_UM / 1000}
    pd.DataFrame([row]).to_csv(path, index=False)


def _names(numbers: np.ndarray) -> list[str]:
    """As AtoMx names cells: `c_<slide>_<fov>_<cell>`."""
    return [f"c_1_{FOV}_{n}" for n in numbers]


def _metadata(result: Result, numbers: np.ndarray, path: Path) -> None:
    obs, polygons = result.table.obs, _in_local(result)
    bounds = shapely.bounds(polygons).reshape(-1, 4)
    wide, high = bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]
    centres = _local(result, apply_affine(result.sample.affine, obs[["centroid_x_um", "centroid_y_um"]].to_numpy(float)))
    means = {f"Mean.{c.removesuffix('_mean')}": obs[c].to_numpy() for c in obs.columns if c.endswith("_mean")}
    frame = pd.DataFrame(
        {
            "fov": FOV,
            "cell_ID": numbers,
            "cell": _names(numbers),
            "Area": np.round(shapely.area(polygons)).astype(np.int64),
            "AspectRatio": np.round(wide / np.maximum(high, 1e-9), 2),
            **_coordinates(result, centres, "CenterX", "CenterY"),
            "Width": np.round(wide).astype(np.int64),
            "Height": np.round(high).astype(np.int64),
            **means,
            "nCount_RNA": obs["n_transcripts"].to_numpy(),
            "nFeature_RNA": obs["n_genes"].to_numpy(),
            "nCount_negprobes": obs["n_control"].to_numpy(),
            "istseg_id": obs.index.to_numpy(),
            **{c: obs[c].to_numpy() for c in ("qc_flag", "qc_reason", "is_spurious", "is_inconsistent")},
        }
    )
    frame.to_csv(path, index=False)


def _in_local(result: Result) -> np.ndarray:
    polygons = result.cells.geometry.to_numpy()
    return shapely.transform(polygons, lambda xy: _local(result, apply_affine(result.sample.affine, xy)))


def _polygons(result: Result, numbers: np.ndarray, path: Path) -> None:
    """One row for each vertex; rings are not closed."""
    polygons = _in_local(result)
    local, cell = shapely.get_coordinates(shapely.get_exterior_ring(polygons), return_index=True)
    last = np.r_[np.diff(cell) != 0, True] if len(cell) else np.empty(0, bool)
    local, cell = local[~last], numbers[cell[~last]]
    head = {"fov": np.full(len(cell), FOV), "cellID": cell, "cell": pa.array(_names(cell), pa.string())}
    with open(path, "wb") as stream:
        tables.append(stream, {**head, **_coordinates(result, local)}, header=True)


def _transcripts(result: Result, numbers: np.ndarray, path: Path) -> None:
    with open(path, "wb") as stream:
        for i, (frame, px, cell) in enumerate(tables.transcripts(result, numbers, outside=0)):
            columns = {
                "fov": np.full(len(frame), FOV),
                "cell_ID": cell,
                **_coordinates(result, _local(result, px)),
                "z": np.round(frame["z"].to_numpy()).astype(np.int64),
                "target": frame["gene"].astype(str).to_numpy(dtype=object),
                "transcript_id": frame["transcript_id"],
            }
            tables.append(stream, columns, header=i == 0)
