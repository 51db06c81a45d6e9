"""TIFF pages read by rows, whatever their layout: uncompressed, tiled, compressed; never more than a band of segments in memory."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from istseg.errors import InputError
from istseg.raw import tiff_header

ALLOWED = ("uint8", "uint16")
MAX_SIDE_PX = 1 << 19
"""No slide is as long: 57 mm at 0.108 µm."""
MAX_SEGMENT_BYTES = 4 << 30
"""A strip or tile is decoded as a whole."""
_MAX_RATIO = {1: 1, 5: 3000, 7: 2000, 8: 1100, 32773: 128, 32946: 1100}
"""Compression → how many times its bytes a strip can hold at most; codecs that are not named: `_MAX_RATIO_OTHER`."""
_MAX_RATIO_OTHER = 50_000
_AHEAD_BYTES = 16 << 20
"""Of a page, that the disk is asked for before they are read: memory for them is the system's, and there may be many pages."""
_ADVICE_BYTES = 1 << 17
"""Linux takes no more of one piece of advice than its own read-ahead, which is this much unless it was set."""
DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RuntimeError, struct.error, zlib.error)
"""What the libraries raise on damaged pictures."""


@dataclass(frozen=True)
class PageInfo:
    """One page: (height, width) and type; `description` is its ImageDescription."""

    path: Path
    page: int
    shape: tuple[int, int]
    dtype: str
    description: str = ""
    band_rows: int = 1


def inspect(path: Path, problems: list[str], allowed: tuple[str, ...] = ALLOWED) -> list[PageInfo]:
    """Check all pages of a TIFF by their headers; problems are appended. Empty when the file cannot be used."""
    noisy = logging.getLogger("tifffile")
    level, found = noisy.level, len(problems)
    noisy.setLevel(logging.CRITICAL)
    try:
        size = path.stat().st_size
        wrong = tiff_header.problem(path)
        if wrong:
            problems.append(f"{path}: cannot be read as TIFF: it {wrong}. Was it copied in full?")
            return []
        with tifffile.TiffFile(path) as tif:
            pages = [_page(path, i, page, size, problems, allowed) for i, page in enumerate(tif.pages)]
    except DAMAGE as error:
        problems.append(f"{path}: cannot be read as TIFF ({str(error)[:200] or type(error).__name__}). Was it copied in full?")
        return []
    finally:
        noisy.setLevel(level)
    if not pages and len(problems) == found:
        problems.append(f"{path}: holds no image. Was it copied in full?")
    return [] if len(problems) > found else pages


def _page(path: Path, index: int, page: tifffile.TiffPage, size: int, problems: list[str], allowed: tuple[str, ...]) -> PageInfo | None:
    page = page.aspage() if hasattr(page, "aspage") else page
    where = f"{path}" if index == 0 else f"{path}, page {index + 1}"
    dtype = str(page.dtype)
    if dtype not in allowed:
        problems.append(f"{where}: the pixels are {dtype}, they must be {' or '.join(allowed)}. Export the image again.")
        return None
    if len(page.shape) != 2 or min(page.shape) < 1:
        problems.append(f"{where}: must be one grey-value plane (height x width), its shape is {page.shape}.")
        return None
    end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
    if end > size:
        problems.append(f"{where}: is cut off: its header asks for {end:,} bytes, the file has {size:,}. Copy it again.")
        return None
    height, width = page.shape
    if max(height, width) > MAX_SIDE_PX:
        problems.append(f"{where}: its header says {height:,} x {width:,} pixels, more than {MAX_SIDE_PX:,} on a side: it is damaged. Copy it again.")
        return None
    expected = height * width * page.dtype.itemsize
    if page.compression == 1 and not page.is_tiled and sum(page.databytecounts) < expected:
        problems.append(f"{where}: is cut off: {height} x {width} pixels need {expected:,} bytes, it holds {sum(page.databytecounts):,}. Copy it again.")
        return None
    band, across = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
    wrong = _segments_problem(page, band, across)
    if wrong:
        problems.append(f"{where}: {wrong}. Copy it again.")
        return None
    return PageInfo(path, index, (height, width), dtype, page.description if index == 0 else "", band)


def _segments_problem(page: tifffile.TiffPage, band: int, across: int) -> str | None:
    """Why the strips or tiles (`band` × `across` pixels) cannot hold the pixels that the header promises; None where they can."""
    height, width = page.shape
    if not (0 < band <= MAX_SIDE_PX and 0 < across <= MAX_SIDE_PX):
        return f"is damaged: its strips or tiles have {band:,} x {across:,} pixels"
    if page.is_contiguous and not page.is_tiled:
        surplus = sum(page.databytecounts) - height * width * page.dtype.itemsize
        return (
            f"is damaged: it holds {surplus:,} bytes more than the {height} x {width} pixels of its header" if surplus >= width * page.dtype.itemsize else None
        )
    per_row, rows = -(-width // across), -(-height // band)
    if not len(page.dataoffsets) == len(page.databytecounts) == rows * per_row:
        return f"is cut off or damaged: {height} x {width} pixels need {rows * per_row:,} strips or tiles, it has {len(page.dataoffsets):,}"
    segment = band * across * page.dtype.itemsize
    if segment > MAX_SEGMENT_BYTES:
        return f"has strips or tiles of {segment / 1e9:.0f} GB, which must be decoded as a whole; export it with smaller ones"
    ratio = _MAX_RATIO.get(int(page.compression), _MAX_RATIO_OTHER)
    last = segment if page.is_tiled else (height - (rows - 1) * band) * across * page.dtype.itemsize
    for index, held in enumerate(page.databytecounts[: rows * per_row]):
        promised = segment if index < (rows - 1) * per_row else last
        if 0 < held * ratio < promised:
            return f"is damaged: a strip or tile of {held:,} bytes cannot hold the {promised:,} bytes that the header promises"
    return None


class PageReader:
    """Random access to the rows of one page.

    Rows asked for from top to bottom are decoded once: the band of segments at the lower edge of a request is kept.

    Attributes
    ----------
    plain
        Whether the pixels lie in the file as they are, one row behind the other. Only then may several threads read at once.
    """

    def __init__(self, info: PageInfo):
        self.info = info
        self.shape = info.shape
        self._tif = tifffile.TiffFile(info.path)
        page = self._tif.pages[info.page]
        self._page = page.aspage() if hasattr(page, "aspage") else page
        # Plain reads, not a memory map: mapped pages would count as memory of the process and grow with the mosaic.
        self.plain = bool(self._page.is_contiguous) and not self._page.is_tiled
        self._band: tuple[int, np.ndarray] | None = None

    def close(self) -> None:
        """Close the file."""
        self._tif.close()
        self._band = None

    def __enter__(self) -> PageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, y0: int, y1: int, out: np.ndarray | None = None) -> np.ndarray:
        """(y1 − y0, width); into `out`, whose rows lie side by side, where it is given."""
        if out is None:
            out = np.empty((y1 - y0, self.shape[1]), self.info.dtype)
        if self.plain:
            self._plain_rows(y0, y1, out)
            return out
        step = self.info.band_rows
        for band in range(y0 // step, (y1 - 1) // step + 1):
            pixels = self._decode_band(band)
            top = band * step
            lo, hi = max(y0, top), min(y1, top + step)
            out[lo - y0 : hi - y0] = pixels[lo - top : hi - top]
        return out

    def expect(self, y0: int, y1: int) -> None:
        """Let the disk bring rows (no more than there are) while other work is done; `rows` will want them."""
        if self.plain and y0 < min(y1, self.shape[0]):
            row = self.shape[1] * self._page.dtype.itemsize
            start, size = self._page.dataoffsets[0] + y0 * row, min((y1 - y0) * row, _AHEAD_BYTES)
            for at in range(start, start + size, _ADVICE_BYTES):
                os.posix_fadvise(self._tif.filehandle.fileno(), at, _ADVICE_BYTES, os.POSIX_FADV_WILLNEED)

    def block(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """(y1 − y0, x1 − x0); decodes no more than it must."""
        if self.plain:
            return self._plain(y0, y1, x0, x1)
        step = self.info.band_rows
        parts = [self._segments(b, x0, x1)[:, x0:x1] for b in range(y0 // step, (y1 - 1) // step + 1)]
        top = y0 // step * step
        return np.concatenate(parts)[y0 - top : y1 - top]

    def _plain_rows(self, y0: int, y1: int, out: np.ndarray) -> None:
        dtype = self._page.dtype.newbyteorder(self._tif.byteorder)
        direct = out.dtype == self.info.dtype
        stored = out if direct else np.empty(out.shape, self.info.dtype)
        file, row = self._tif.filehandle.fileno(), self.shape[1] * dtype.itemsize
        start = self._page.dataoffsets[0] + y0 * row
        memory = memoryview(stored).cast("B")
        at = 0
        while at < len(memory):
            got = os.preadv(file, [memory[at:]], start + at)
            if not got:
                raise self._damaged(y0, y1, ValueError("the file ends"))
            at += got
        if not dtype.isnative:
            stored.byteswap(inplace=True)
        if not direct:
            out[:] = stored

    def _plain(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        width = self.shape[1]
        dtype = self._page.dtype.newbyteorder(self._tif.byteorder)
        handle, start = self._tif.filehandle, self._page.dataoffsets[0]
        out = np.empty((y1 - y0, x1 - x0), self.info.dtype)
        try:
            for y in range(y0, y1):
                handle.seek(start + (y * width + x0) * dtype.itemsize)
                out[y - y0] = np.frombuffer(handle.read((x1 - x0) * dtype.itemsize), dtype)
        except ValueError as error:
            raise self._damaged(y0, y1, error) from None
        return out

    def _decode_band(self, band: int) -> np.ndarray:
        if self._band is None or self._band[0] != band:
            self._band = (band, self._segments(band, 0, self.shape[1]))
        return self._band[1]

    def _segments(self, band: int, x0: int, x1: int) -> np.ndarray:
        page, (height, width), step = self._page, self.shape, self.info.band_rows
        out = np.zeros((min(step, height - band * step), width), self.info.dtype)
        across = -(-width // page.tilewidth) if page.is_tiled else 1
        for column in range(across):
            left = column * (page.tilewidth if page.is_tiled else width)
            if left >= x1 or left + (page.tilewidth if page.is_tiled else width) <= x0:
                continue
            index = band * across + column
            handle = self._tif.filehandle
            try:
                handle.seek(page.dataoffsets[index])
                data = handle.read(page.databytecounts[index]) if page.databytecounts[index] else None
                decoded, _, _ = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
                if decoded is None:
                    continue
                pixels = decoded.reshape(decoded.shape[-3], decoded.shape[-2])[: out.shape[0], : width - left]
                out[: pixels.shape[0], left : left + pixels.shape[1]] = pixels
            except DAMAGE as error:
                raise self._damaged(band * step, band * step + len(out), error) from None
        return out

    def _damaged(self, y0: int, y1: int, error: Exception) -> InputError:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        return InputError(f"{self.info.path}: rows {y0} to {y1} of page {self.info.page + 1} cannot be decoded ({why}). Copy it again.")


def blocks(pages: list[PageInfo], box: tuple[int, int, int, int]) -> np.ndarray:
    """(n, h, w) float32: the same part (y0, y1, x0, x1) of several pages."""
    parts = []
    for page in pages:
        with PageReader(page) as reader:
            parts.append(reader.block(*box).astype(np.float32))
    return np.stack(parts)
