"""Arrays of images on disk in few files: zarr v3 with shards that are filled as the rows come, top to bottom.

zarr writes a shard as a whole, so it would have to hold 8192 rows of the mosaic. Here every chunk enters its shard when its row of chunks is there, and
the shard's index when its last row is: memory holds one row of chunks. The files are those of the codec `sharding_indexed` of the zarr v3 specification:
encoded chunks, then (offset, length) of each in C order, uint64, all ones where a chunk is empty, then the CRC32C of that index.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import BITSHUFFLE, Blosc

from istseg.cpus import given_cpus

CHUNK = 512
"""Side of a chunk, pixels."""
SHARD_CHUNKS = 16
"""Side of a shard in chunks: 8192 pixels, so a channel of 1 cm² of 0.108 µm pixels takes 144 files at full resolution."""
_EMPTY = np.uint64(2**64 - 1)


class ShardedWriter:
    """Write an array (y, x) or (c, y, x), top to bottom.

    Parameters
    ----------
    path
        Of the array.
    shape, dtype
        Of the array; its fill value is 0.
    codec
        `zstd`, or `lz4`: twice as fast to write and to read, 6 to 8 % larger for pictures of a microscope.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str, codec: str = "zstd"):
        self._path, self._planes = Path(path), shape[0] if len(shape) == 3 else 1
        self._in_front = [()] if len(shape) == 2 else [(c,) for c in range(shape[0])]
        self.height, self.width = shape[-2:]
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._rows, self._columns = (min(SHARD_CHUNKS, -(-side // CHUNK)) for side in shape[-2:])
        one = (1,) * (len(shape) - 2)
        zarr.create_array(
            path,
            shape=shape,
            dtype=dtype,
            chunks=(*one, CHUNK, CHUNK),
            shards=(*one, self._rows * CHUNK, self._columns * CHUNK),
            compressors=zarr.codecs.BloscCodec(cname=codec, clevel=1, shuffle="bitshuffle", typesize=self._dtype.itemsize),
            fill_value=0,
            dimension_names=("c", "y", "x")[-len(shape) :],
        )
        self._codec = Blosc(codec, 1, BITSHUFFLE, typesize=self._dtype.itemsize)
        self._indices: dict[Path, np.ndarray] = {}
        self._threads = ThreadPoolExecutor(_n_threads())
        self.y = 0

    def write(self, block: np.ndarray) -> None:
        """Append rows ([c,] h, x); all but the last ones must be `CHUNK` high (ValueError)."""
        block = block.reshape(self._planes, -1, self.width)
        height = block.shape[1]
        if self.y % CHUNK or height > CHUNK or self.y + height > self.height:
            raise ValueError(f"rows must come {CHUNK} at a time, and no more than the array has")
        row = self.y // CHUNK
        for front, plane in zip(self._in_front, block, strict=True):
            for column in range(-(-self.width // (self._columns * CHUNK))):
                self._append(self._path.joinpath("c", *map(str, (*front, row // self._rows, column))), row % self._rows, plane, column)
        self.y += height
        if (row + 1) % self._rows == 0 or self.y == self.height:
            self._finish()
        if self.y == self.height:
            self._threads.shutdown()

    def _append(self, shard: Path, row: int, plane: np.ndarray, column: int) -> None:
        encoded = []
        offset = shard.stat().st_size if shard in self._indices else 0
        index = self._indices.get(shard)
        first = column * self._columns * CHUNK
        chunks = (plane[:, first + k * CHUNK : first + (k + 1) * CHUNK] for k in range(self._columns))
        for k, data in enumerate(self._threads.map(self._encode, chunks)):
            if data is None:
                continue
            if index is None:
                index = self._indices[shard] = np.full((self._rows, self._columns, 2), _EMPTY, "<u8")
            index[row, k] = offset, len(data)
            offset += len(data)
            encoded.append(data)
        if encoded:
            shard.parent.mkdir(parents=True, exist_ok=True)
            with open(shard, "ab") as stream:
                stream.writelines(encoded)

    def _encode(self, pixels: np.ndarray) -> bytes | None:
        """A chunk as it is stored; None where it holds only 0."""
        if not pixels.any():
            return None
        if pixels.shape != (CHUNK, CHUNK):
            pixels = np.pad(pixels, ((0, CHUNK - pixels.shape[0]), (0, CHUNK - pixels.shape[1])))
        return self._codec.encode(np.ascontiguousarray(pixels, self._dtype))

    def _finish(self) -> None:
        for shard, index in self._indices.items():
            text = index.tobytes()
            with open(shard, "ab") as stream:
                stream.write(text + google_crc32c.value(text).to_bytes(4, "little"))
        self._indices = {}


def _n_threads() -> int:
    """16 chunks lie side by side in a shard."""
    return min(given_cpus(), SHARD_CHUNKS)


def most_files(shape: tuple[int, ...]) -> int:
    """Files that an array of this shape takes at most: its shards and its metadata. Empty shards have none."""
    sides = [-(-side // (CHUNK * SHARD_CHUNKS)) for side in shape[-2:]]
    return int(np.prod(shape[:-2], dtype=int)) * sides[0] * sides[1] + 1


def pyramid(height: int, width: int, smallest: int) -> list[tuple[int, int]]:
    """(height, width) of the levels, each half of the one before: at least two, until the longer side is at most `smallest`."""
    levels = [(height, width)]
    while (len(levels) < 2 or max(levels[-1]) > smallest) and min(levels[-1]) >= 2:
        levels.append((levels[-1][0] // 2, levels[-1][1] // 2))
    return levels
