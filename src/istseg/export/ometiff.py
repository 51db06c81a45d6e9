"""The cells as a label image: OME-TIFF, tiled, with levels, as QuPath, napari and Fiji open it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from istseg.artifacts.files import whole
from istseg.artifacts.shards import pyramid
from istseg.errors import InputError
from istseg.export.result import Result

if TYPE_CHECKING:
    import zarr

_TILE = 512
_SMALLEST = 1024


def write(result: Result, path: Path) -> None:
    """Write a label image (y, x) at working resolution; a pixel's value is `label` of the table, 0 outside of cells.

    Levels take every second pixel of the one before, because means of labels are labels of other cells. A row of tiles is in memory at a time.

    Raises
    ------
    InputError
        If merge wrote no label image.
    """
    labels = result.label_image()
    if labels is None:
        raise InputError(f"{result.sample.sample}: merge wrote no label image, so there is none to export; leave `ometiff` out of the formats.")
    height, width = labels.shape
    working_um = float(abs(np.linalg.det(np.asarray(labels.attrs["micron_to_working"], float)[:2, :2])) ** -0.5)
    levels = pyramid(height, width, _SMALLEST)
    dtype = np.uint32
    with whole(path) as part, tifffile.TiffWriter(part, ome=True, bigtiff=True) as tif:
        for i, shape in enumerate(levels):
            first = i == 0
            name = f"{result.sample.sample} cells"
            metadata = {"axes": "YX", "Name": name, "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, name)}"}
            metadata |= {f"PhysicalSize{a}": working_um for a in "XY"} | {f"PhysicalSize{a}Unit": "µm" for a in "XY"}
            tif.write(
                _tiles(labels, 2**i, shape, dtype), shape=shape, dtype=dtype, tile=(_TILE, _TILE), compression="zlib", photometric="minisblack",
                metadata=metadata if first else None, subifds=len(levels) - 1 if first else None, subfiletype=0 if first else 1, software=False,
            )  # fmt: skip


def _tiles(labels: zarr.Array, step: int, shape: tuple[int, int], dtype: type) -> Iterator[np.ndarray]:
    """Tiles of a level, row by row; those at the right and lower edge filled with 0."""
    height, width = shape
    for y in range(0, height, _TILE):
        rows = labels[y * step : min(y + _TILE, height) * step : step][:, ::step][:, :width].astype(dtype)
        for x in range(0, width, _TILE):
            tile = rows[:_TILE, x : x + _TILE]
            yield np.pad(tile, ((0, _TILE - tile.shape[0]), (0, _TILE - tile.shape[1])))
