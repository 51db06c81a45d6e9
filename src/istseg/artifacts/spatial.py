"""`<sample>.zarr`: SpatialData (zarr v3, the on-disk form of spatialdata 0.7) written as a stream.

Image `stains` (multiscale NGFF), points `transcripts` (one parquet part for each band in y), shapes `vendor_cells`. The coordinate system
`global` is the `micron` frame: points and shapes lie in it as they are, the image is mapped into it by the affine of `sample.json`.
spatialdata itself is not imported: it needs seconds to load and the whole image at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from istseg.artifacts.shards import CHUNK, ShardedWriter, pyramid
from istseg.cpus import given_cpus
from istseg.errors import InputError

IMAGE, POINTS, SHAPES = "stains", "transcripts", "vendor_cells"
SPATIALDATA = "0.7.3"
_SMALLEST = 512
"""Levels are made until the longer side is at most this, at least two."""


class ImageWriter:
    """Write the pyramid from strips, top to bottom; holds one chunk row of every level at most.

    Parameters
    ----------
    root
        The zarr store.
    names
        Names of the channels.
    height, width
        Full resolution.
    pixel_to_micron
        (3, 3) affine.
    image, dtype
        Name of the element and type of its values.
    """

    def __init__(self, root: Path, names: list[str], height: int, width: int, pixel_to_micron: np.ndarray, image: str = IMAGE, dtype: str = "uint16"):
        self._root, self._names, self._affine, self._image = root, names, pixel_to_micron, image
        self.threads = ThreadPoolExecutor(given_cpus())
        shapes = [(len(names), *shape) for shape in pyramid(height, width, _SMALLEST)]
        self._levels = [ShardedWriter(root / "images" / image / f"s{i}", shape, dtype, "lz4", self.threads) for i, shape in enumerate(shapes)]
        self._waiting = [_Rows(shape, dtype) for shape in shapes[1:]]

    def write(self, strip: np.ndarray) -> None:
        """Append a strip (c, h, x); every strip but the last one must be `CHUNK` rows high (ValueError)."""
        self._push(0, strip)

    def close(self) -> None:
        """Write what is left and the metadata.

        Raises
        ------
        ValueError
            If rows are missing.
        """
        for index, rows in enumerate(self._waiting, 1):
            if rows.n:
                self._push(index, rows.take())
        self.threads.shutdown()
        short = next((level for level in self._levels if level.y != level.height), None)
        if short:
            raise ValueError(f"{short.y} of {short.height} rows were written")
        _group(self._root / "images" / self._image, self._attributes())

    def _push(self, index: int, block: np.ndarray) -> None:
        """Write a row of chunks of a level; their halves wait for the next level until they fill a row there."""
        if index == len(self._waiting):
            self._levels[index].write(block)
            return
        rows = self._waiting[index]
        target = rows.add(block.shape[1] // 2)
        self._levels[index].write(block, lambda plane, x, pixels: halve(pixels, target[plane, :, x // 2 : (x + CHUNK) // 2]))
        if rows.n == CHUNK:
            self._push(index + 1, rows.take())

    def _attributes(self) -> dict[str, Any]:
        axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
        image = _multiscales(f"/images/{self._image}", axes, len(self._levels), self._affine)
        ome = {"omero": {"channels": [{"label": n} for n in self._names]}, "version": "0.5-dev-spatialdata", "multiscales": [image]}
        return {"ome": ome, "spatialdata_attrs": {"version": "0.3"}}


def write_labels(root: Path, name: str, labels: zarr.Array, pixel_to_micron: np.ndarray) -> None:
    """Write a label image (y, x), copied by rows, as the store's only one; `finish` or spatialdata must write the store's metadata afterwards."""
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    image = _multiscales(name, axes, 1, pixel_to_micron)
    _group(root / "labels", {"ome": {"labels": [name]}})
    ome = {"version": "0.5-dev-spatialdata", "multiscales": [image], "image-label": {"version": "0.5"}}
    _group(root / "labels" / name, {"ome": ome, "spatialdata_attrs": {"version": "0.3"}})
    writer = ShardedWriter(root / "labels" / name / "s0", labels.shape, str(labels.dtype))
    step = -(-max(labels.chunks[0], CHUNK) // CHUNK) * CHUNK
    for y in range(0, labels.shape[0], step):
        rows = labels[y : y + step]
        for top in range(0, len(rows), CHUNK):
            writer.write(rows[top : top + CHUNK])


def _multiscales(name: str, axes: list[dict[str, str]], n_levels: int, pixel_to_micron: np.ndarray) -> dict[str, Any]:
    """NGFF metadata of an image (c, y, x) or (y, x) whose pixels the affine (x, y) maps into the coordinate system `global`."""
    a = np.asarray(pixel_to_micron, float)
    affine = [[0.0, a[1, 1], a[1, 0], a[1, 2]], [0.0, a[0, 1], a[0, 0], a[0, 2]]]
    affine = [[1.0, 0.0, 0.0, 0.0], *affine] if len(axes) == 3 else [row[1:] for row in affine]
    space = [axis if axis["type"] == "channel" else {**axis, "unit": "micrometer"} for axis in axes]
    frames = {"input": {"name": "".join(axis["name"] for axis in axes), "axes": space}, "output": {"name": "global", "axes": space}}
    front = [1.0] * (len(axes) - 2)
    scales = [{"path": f"s{i}", "coordinateTransformations": [{"type": "scale", "scale": [*front, 2.0**i, 2.0**i]}]} for i in range(n_levels)]
    return {"datasets": scales, "name": name, "axes": axes, "coordinateTransformations": [{"type": "affine", "affine": affine, **frames}]}


class _Rows:
    """Rows of a level that wait until they fill a row of chunks."""

    def __init__(self, shape: tuple[int, int, int], dtype: str):
        self._pixels = np.empty((shape[0], min(CHUNK, shape[1]), shape[2]), dtype)
        self.n = 0

    def add(self, height: int) -> np.ndarray:
        """Place (c, height, x) for the next rows.

        Raises
        ------
        ValueError
            If they do not fit.
        """
        if self.n + height > self._pixels.shape[1]:
            raise ValueError(f"strips must be {CHUNK} rows high and not reach across a row of chunks")
        self.n += height
        return self._pixels[:, self.n - height : self.n]

    def take(self) -> np.ndarray:
        """The rows, valid until others are added."""
        taken, self.n = self._pixels[:, : self.n], 0
        return taken


def halve(pixels: np.ndarray, target: np.ndarray) -> None:
    """Mean of 2 × 2 pixels, (y, x) into (y // 2, x // 2); an odd last row or column is left out."""
    height, width = target.shape
    if height and width:
        target[:] = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)


def write_points_metadata(root: Path) -> Path:
    """Write the metadata of the points; give the folder for their parts."""
    attributes = {"encoding-type": "ngff:points", **_identity("xyz"), "spatialdata_attrs": {"feature_key": "gene", "version": "0.2"}}
    _group(root / "points" / POINTS, attributes)
    parts = root / "points" / POINTS / "points.parquet"
    parts.mkdir()
    return parts


def write_shapes(root: Path, ids: list[str], polygons: list[Any]) -> None:
    """Write polygons (µm) with their ids as index."""
    _group(root / "shapes" / SHAPES, {"encoding-type": "ngff:shapes", **_identity("xy"), "spatialdata_attrs": {"version": "0.3"}})
    frame = gpd.GeoDataFrame({"cell_id": ids}, geometry=polygons, index=ids)
    frame.to_parquet(root / "shapes" / SHAPES / "shapes.parquet")


def finish(root: Path, elements: list[str]) -> None:
    """Write the metadata of the store; `elements` are the folders that hold something (`images`, `points`, `shapes`)."""
    for kind in elements:
        _group(root / kind, {})
    _group(root, {"spatialdata_attrs": {"version": "0.2", "spatialdata_software_version": SPATIALDATA}})
    with warnings.catch_warnings():
        # zarr does not know the parquet files that spatialdata keeps inside groups.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(root, zarr_format=3)


def _group(path: Path, attributes: dict[str, Any]) -> None:
    zarr.create_group(path, attributes=attributes, zarr_format=3)


def _identity(axes: str) -> dict[str, Any]:
    spaces = [{"name": name, "type": "space", "unit": "micrometer"} for name in axes]
    ends = {"input": {"name": axes, "axes": spaces}, "output": {"name": "global", "axes": spaces}}
    return {"axes": list(axes), "coordinateTransformations": [{"type": "identity", **ends}]}


def image_level(root: str | Path, level: int = 0) -> zarr.Array:
    """Lazy (c, y, x) uint16 array of a level of the image; level 0 is full resolution.

    Raises
    ------
    InputError
        If the store or the level is not there.
    """
    path = Path(root) / "images" / IMAGE / f"s{level}"
    if not path.is_dir():
        raise InputError(f"{path}: is not there; {root} should be the <sample>.zarr of the stage convert. Run convert again.")
    return zarr.open_array(path, mode="r")


def n_levels(root: str | Path) -> int:
    """Number of levels of the image."""
    return len(list((Path(root) / "images" / IMAGE).glob("s[0-9]*")))


BATCH = 1 << 18
"""Transcripts held at a time."""


def transcript_parts(points: str | Path) -> list[Path]:
    """Parts of a `points.parquet` folder in the order of their bands; `points` may also be the `<sample>.zarr`.

    Raises
    ------
    InputError
        If there is none.
    """
    folder = Path(points)
    inside = folder / "points" / POINTS / "points.parquet"
    folder = inside if inside.is_dir() else folder
    parts = sorted(folder.glob("part.*.parquet"), key=lambda p: int(p.name.split(".")[1]))
    if not parts:
        raise InputError(f"{folder}: holds no parts of transcripts; it should be the points.parquet of the stage convert. Run convert again.")
    return parts


def transcript_batches(points: str | Path, columns: list[str], optional: tuple[str, ...] = ()) -> Iterator[pa.RecordBatch]:
    """Batches of at most `BATCH` transcripts in the order of the parts, none of them empty.

    Parameters
    ----------
    columns
        That every part must have.
    optional
        Taken where a part has them.

    Raises
    ------
    InputError
        If there are no parts, or one lacks a column.
    """
    for path in transcript_parts(points):
        with pq.ParquetFile(path) as stored:
            missing = set(columns) - set(stored.schema_arrow.names)
            if missing:
                raise InputError(f"{path}: lacks the columns {sorted(missing)}; run convert again.")
            wanted = [*columns, *(name for name in optional if name in stored.schema_arrow.names)]
            yield from (b for b in stored.iter_batches(BATCH, columns=wanted) if b.num_rows)


def bands_between(bands_um: list[float], y0_um: float, y1_um: float) -> range:
    """Bands that may hold transcripts with y in [y0, y1) µm from the mosaic's upper edge. The first and the last also hold what lies outside the mosaic."""
    first = int(np.searchsorted(bands_um, y0_um, side="right"))
    last = int(np.searchsorted(bands_um, y1_um, side="left"))
    return range(min(first, len(bands_um) - 1), min(last, len(bands_um) - 1) + 1)


def point_schema(genes: list[str]) -> pa.Schema:
    """Schema of the parts; `gene` is a category with all genes, then all controls, of the sample."""
    import pandas as pd

    empty = pd.DataFrame(
        {
            "x": np.empty(0),
            "y": np.empty(0),
            "z": np.empty(0, np.float32),
            "gene": pd.Categorical([], categories=genes),
            "is_control": np.empty(0, bool),
            "transcript_id": np.empty(0, np.int64),
            "vendor_cell": pd.Series([], dtype=object),
        }
    )
    metadata = pa.Table.from_pandas(empty, preserve_index=False).schema.metadata
    types = [("x", pa.float64()), ("y", pa.float64()), ("z", pa.float32()), ("gene", pa.dictionary(pa.int32(), pa.string()))]
    types += [("is_control", pa.bool_()), ("transcript_id", pa.int64()), ("vendor_cell", pa.string())]
    return pa.schema(types, metadata=metadata)


def open_part(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Writer of one part."""
    # Only what repeats: looking for repetitions in coordinates and numbers takes three times as long as all the rest.
    return pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=["gene", "vendor_cell"])
