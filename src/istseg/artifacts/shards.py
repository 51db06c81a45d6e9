"""Arrays of images on disk in few files: zarr v3 with shards that are filled as the rows come, top to bottom.

zarr writes a shard as a whole, so it would have to hold 8192 rows of the mosaic. Here every chunk enters its shard when its row of chunks is there, and
the shard's index when its last row is: memory holds one row of chunks. The files are those of the codec `sharding_indexed` of the zarr v3 specification:
encoded chunks, then (offset, length) of each in C order, uint64, all ones where a chunk is empty, then the CRC32C of that index.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import local

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
_BLOCK_BYTES = 1 << 16
"""Packed at a time within a chunk: it stays in the processor's nearest cache, which takes a fifth less time than Blosc's own choice."""
_AHEAD = 4
"""Chunks for each thread that are packed or wait to be written."""

Visit = Callable[[int, int, np.ndarray], object]
"""Called in the threads with the plane, the first column and the pixels of a chunk, before it is packed."""


class _Space(local):
    """Memory of a thread for one chunk: rows of a wide strip lie far apart, and what is done with a chunk reads them more than once."""

    def __init__(self) -> None:
        self._bytes = np.empty(CHUNK * CHUNK * 8, np.uint8)

    def chunk(self, dtype: np.dtype) -> np.ndarray:
        """(CHUNK, CHUNK) of any values."""
        return self._bytes[: CHUNK * CHUNK * dtype.itemsize].view(dtype).reshape(CHUNK, CHUNK)


_SPACE = _Space()


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
    threads
        That pack chunks; without, as many as there are CPUs.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str, codec: str = "zstd", threads: ThreadPoolExecutor | None = None):
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
            compressors=zarr.codecs.BloscCodec(cname=codec, clevel=1, shuffle="bitshuffle", typesize=self._dtype.itemsize, blocksize=_BLOCK_BYTES),
            fill_value=0,
            dimension_names=("c", "y", "x")[-len(shape) :],
        )
        self._codec = Blosc(codec, 1, BITSHUFFLE, _BLOCK_BYTES, typesize=self._dtype.itemsize)
        self._indices: dict[Path, np.ndarray] = {}
        self._own = None if threads else ThreadPoolExecutor(given_cpus())
        self._threads = threads or self._own
        self.y = 0

    def write(self, block: np.ndarray, visit: Visit | None = None) -> None:
        """Append rows ([c,] h, x); all but the last ones must be `CHUNK` high (ValueError)."""
        block = block.reshape(self._planes, -1, self.width)
        height = block.shape[1]
        if self.y % CHUNK or height > CHUNK or self.y + height > self.height:
            raise ValueError(f"rows must come {CHUNK} at a time, and no more than the array has")
        row = self.y // CHUNK
        waiting: list[bytes | None] = []
        places = ((plane, x) for plane in range(self._planes) for x in range(0, self.width, CHUNK))
        for plane, x, data in self._encoded(block, places, visit):
            waiting.append(data)
            column, k = divmod(x // CHUNK, self._columns)
            if k + 1 == self._columns or x + CHUNK >= self.width:
                shard = self._path.joinpath("c", *map(str, (*self._in_front[plane], row // self._rows, column)))
                self._append(shard, row % self._rows, waiting)
                waiting = []
        self.y += height
        if (row + 1) % self._rows == 0 or self.y == self.height:
            self._finish()
        if self._own and self.y == self.height:
            self._own.shutdown()

    def _encoded(self, block: np.ndarray, places: Iterator[tuple[int, int]], visit: Visit | None) -> Iterator[tuple[int, int, bytes | None]]:
        """Chunks in the order of their places; few are packed ahead, so that memory does not grow with the width."""
        pending: deque[tuple[int, int, Future[bytes | None]]] = deque()
        for plane, x in places:
            pending.append((plane, x, self._threads.submit(self._encode, block[plane, :, x : x + CHUNK], plane, x, visit)))
            if len(pending) > _AHEAD * given_cpus():
                plane, x, done = pending.popleft()
                yield plane, x, done.result()
        for plane, x, done in pending:
            yield plane, x, done.result()

    def _append(self, shard: Path, row: int, chunks: list[bytes | None]) -> None:
        if not any(chunks):
            return
        offset = shard.stat().st_size if shard in self._indices else 0
        index = self._indices.setdefault(shard, np.full((self._rows, self._columns, 2), _EMPTY, "<u8"))
        for k, data in enumerate(chunks):
            if data is not None:
                index[row, k] = offset, len(data)
                offset += len(data)
        shard.parent.mkdir(parents=True, exist_ok=True)
        with open(shard, "ab") as stream:
            stream.writelines(filter(None, chunks))

    def _encode(self, pixels: np.ndarray, plane: int, x: int, visit: Visit | None) -> bytes | None:
        """A chunk as it is stored; None where it holds only 0."""
        chunk = _SPACE.chunk(self._dtype)
        if pixels.shape != chunk.shape:
            chunk[:] = 0
        inside = chunk[: pixels.shape[0], : pixels.shape[1]]
        inside[:] = pixels
        if visit:
            visit(plane, x, inside)
        return self._codec.encode(chunk) if chunk[0, 0] or chunk.any() else None

    def _finish(self) -> None:
        for shard, index in self._indices.items():
            text = index.tobytes()
            with open(shard, "ab") as stream:
                stream.write(text + google_crc32c.value(text).to_bytes(4, "little"))
        self._indices = {}


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
