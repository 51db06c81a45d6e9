"""Flat files of a simulated CosMx slide."""

from __future__ import annotations

import csv
import gzip
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pyarrow as pa

from istseg.artifacts.labels import outlines_of
from istseg.simulate.cosmx_slide import Slide

_COMPARTMENTS = np.array(["0", "Nuclear", "Cytoplasm", "Membrane"])
_MM = 0.000120280945  # mm per pixel with which generation B turns positions into pixels
_TX = {
    "A": ["fov", "cell_ID", "x_global_px", "y_global_px", "x_local_px", "y_local_px", "z", "target", "CellComp"],
    "B": ["fov", "cell_ID", "cell", "x_local_px", "y_local_px", "x_global_px", "y_global_px", "z", "target", "CellComp"],
}
_TX["C"] = _TX["B"]
_CELLS = ["fov", "cell_ID", "Area", "AspectRatio", "CenterX_local_px", "CenterY_local_px", "CenterX_global_px", "CenterY_global_px", "Width", "Height"]
_POLYGONS = ["fov", "cellID", "cell", "x_local_px", "y_local_px", "x_global_px", "y_global_px"]


def transcripts(slide: Slide, fov: int, found: dict[str, np.ndarray], cell: np.ndarray, compartment: np.ndarray) -> pa.Table:
    """Rows of the transcript file of a FOV; `cell` and `compartment` are those of the instrument."""
    x, y = local(slide, found["column"], found["row"])
    gx, gy = to_global(slide, fov, x, y)
    columns = {
        "fov": np.full(len(x), fov),
        "cell_ID": cell,
        "cell": pa.array(cell_names(fov, cell)),
        "x_local_px": np.round(x, 5),
        "y_local_px": np.round(y, 5),
        "x_global_px": np.round(gx, 5),
        "y_global_px": np.round(gy, 5),
        "z": found["z"],
        "target": pa.array(slide.targets).take(pa.array(found["gene"])),
        "CellComp": pa.array(_COMPARTMENTS[compartment] if slide.generation == "A" else np.where(cell > 0, _COMPARTMENTS[compartment], "None")),
    }
    return pa.table({name: columns[name] for name in _TX[slide.generation]})


def local(slide: Slide, column: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local coordinates of places in the image: in generation A, y grows upwards."""
    return column, slide.frame[0] - row if slide.generation == "A" else row


def to_global(slide: Slide, fov: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Global coordinates of local ones."""
    x0, y0 = slide.place(fov)
    return x0 + x, y0 + y if slide.generation == "A" else y0 - y


def cell_names(fov: int, cell: np.ndarray) -> np.ndarray:
    """`c_slide_fov_cell`."""
    return np.char.add(f"c_1_{fov}_", np.asarray(cell).astype(str))


def write_cells(slide: Slide, fov: int, labels: np.ndarray, counts: np.ndarray) -> None:
    """Parts of the metadata, expression and polygon files of a FOV. `counts`: (cells + 1, targets), row 0 for what is in no cell."""
    stem = str(slide.parts / f"{fov}")
    n = len(counts) - 1
    polygons = outlines_of(labels, np.arange(1, n + 1))
    yy, xx = np.nonzero(labels)
    key = labels[yy, xx]
    area = np.bincount(key, minlength=n + 1)
    cx, cy = (np.bincount(key, v + 0.5, n + 1) / np.maximum(area, 1) for v in (xx, yy))
    lx, ly = local(slide, cx, cy)
    gx, gy = to_global(slide, fov, lx, ly)
    with (
        open(f"{stem}.metadata.csv", "w", newline="") as metadata,
        open(f"{stem}.exprMat.csv", "w", newline="") as matrix,
        open(f"{stem}.polygons.csv", "w", newline="") as outlines,
    ):
        about, expression, corners = csv.writer(metadata), csv.writer(matrix), csv.writer(outlines)
        named = slide.generation != "A"
        expression.writerow([fov, 0, *([f"c_1_{fov}_0"] if named else []), *counts[0].tolist()])
        for cell in range(1, n + 1):
            x0, y0, x1, y1 = polygons[cell].bounds
            name = f"c_1_{fov}_{cell}"
            width, height = max(round(x1 - x0), 1), max(round(y1 - y0), 1)
            row = [
                fov,
                cell,
                int(area[cell]),
                round(width / height, 2),
                *(round(v) for v in (lx[cell], ly[cell])),
                *(float(v) for v in (gx[cell], gy[cell])),
                width,
                height,
            ]
            extra = [name, int(counts[cell].sum()), int((counts[cell] > 0).sum())] if named else []
            about.writerow([*row, *extra])
            expression.writerow([fov, cell, *([name] if named else []), *counts[cell].tolist()])
            ring = np.asarray(polygons[cell].simplify(0.5).exterior.coords)[:-1]
            px, py = local(slide, ring[:, 0], ring[:, 1])
            qx, qy = to_global(slide, fov, px, py)
            corners.writerows([fov, cell, name, *(round(float(v), 3) for v in values)] for values in zip(px, py, qx, qy, strict=True))


def join(slide: Slide) -> int:
    """Put the parts of all FOVs together; returns the number of the instrument's cells."""
    named = slide.generation != "A"
    kinds: dict[str, tuple[str, list[str]]] = {
        "tx": ("_tx_file.csv", _TX[slide.generation]),
        "exprMat": ("_exprMat_file.csv", ["fov", "cell_ID", *(["cell"] if named else []), *slide.targets]),
        "metadata": ("_metadata_file.csv", [*_CELLS, *(["cell", "nCount_RNA", "nFeature_RNA"] if named else [])]),
    }
    if slide.generation == "C":
        kinds["polygons"] = ("-polygons.csv", _POLYGONS)
    lines = 0
    for kind, (suffix, header) in kinds.items():
        with _open(slide, suffix) as whole:
            whole.write((",".join(header) + "\n").encode())
            for fov in range(1, len(slide.corners) + 1):
                with open(slide.parts / f"{fov}.{kind}.csv", "rb") as part:
                    if kind == "metadata":
                        lines += sum(1 for _ in part)
                        part.seek(0)
                    shutil.copyfileobj(part, whole)
    return lines


def write_positions(slide: Slide) -> None:
    """`_fov_positions_file.csv`: pixels (A), millimetres (B) or both (C)."""
    rows: list[list[Any]] = []
    for fov in range(1, len(slide.corners) + 1):
        x, y = slide.place(fov)
        mm = [x * _MM, y * _MM]
        rows.append({"A": [fov, x, y], "B": [1, *mm, 0, 0, 0, fov, fov - 1], "C": [fov, x, y, *mm]}[slide.generation])
    header = {
        "A": "fov,x_global_px,y_global_px",
        "B": "Slide,X_mm,Y_mm,Z_mm,ZOffset_mm,ROI,FOV,Order",
        "C": "FOV,x_global_px,y_global_px,x_global_mm,y_global_mm",
    }[slide.generation]
    with _open(slide, "_fov_positions_file.csv") as stream:
        stream.write((header + "\n" + "".join(",".join(map(repr, row)) + "\n" for row in rows)).encode())


@contextmanager
def _open(slide: Slide, suffix: str) -> Iterator[IO[bytes]]:
    """Flat file for writing; generation B is gzipped, without the time in its header, so that bytes repeat."""
    if slide.generation != "B":
        with open(slide.folder / f"{slide.name}{suffix}", "wb") as stream:
            yield stream
        return
    with open(slide.folder / f"{slide.name}{suffix}.gz", "wb") as stream, gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0) as packed:
        yield packed
