"""Images of CosMx fields of view (FOVs), read by rows and stitched into strips of the mosaic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from istseg.errors import InputError
from istseg.raw import tiffs

COMPOSITE = {"DAPI": 2, "composite_red": 0, "composite_green": 1}
"""Stain → channel of the RGB picture. Blue shows the nuclei; what red and green show differs between runs and is not in the files."""

_MAX_RATIO = 2000
"""Pixels that a byte of a PNG or JPEG can hold at most."""


def inspect_picture(path: Path, problems: list[str]) -> tuple[int, int] | None:
    """(height, width) of an RGB picture by its header and its end; None with the reason in `problems`."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture, open(path, "rb") as stream:
            kind, mode, size = picture.format, picture.mode, picture.size
            stream.seek(-min(path.stat().st_size, 64), 2)
            end = stream.read()
    except (*tiffs.DAMAGE, SyntaxError) as error:
        problems.append(f"{path}: cannot be read as an image ({str(error)[:200]}). Was it copied in full?")
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if mode not in ("RGB", "RGBA"):
        problems.append(f"{path}: must be an RGB picture, its mode is {mode}.")
        return None
    if (kind == "PNG" and b"IEND" not in end) or (kind == "JPEG" and b"\xff\xd9" not in end):
        problems.append(f"{path}: is cut off: the end mark of a {kind} file is missing. Copy it again.")
        return None
    if max(size) > tiffs.MAX_SIDE_PX or size[0] * size[1] > path.stat().st_size * _MAX_RATIO:
        problems.append(
            f"{path}: is damaged: {path.stat().st_size:,} bytes cannot hold the {size[1]:,} x {size[0]:,} pixels that its header promises. Copy it again."
        )
        return None
    return size[1], size[0]


def read_picture(path: Path) -> np.ndarray:
    """(height, width, 3) uint8 of an RGB picture that `inspect_picture` found sound.

    Raises
    ------
    InputError
        If its pixels cannot be decoded.
    """
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (*tiffs.DAMAGE, SyntaxError) as error:
        raise InputError(f"{path}: cannot be decoded ({str(error)[:200]}). Copy it again.") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


class Picture:
    """An RGB picture by rows. It can only be decoded as a whole, so its pixels wait in a scratch file."""

    def __init__(self, path: Path, channels: list[int], scratch: Path):
        self._channels = channels
        pixels = read_picture(path)
        self._width = pixels.shape[1]
        self._file = scratch / f"{path.stem}.raw"
        pixels.tofile(self._file)
        self._stream = open(self._file, "rb")  # noqa: SIM115 - stays open until close

    def rows(self, y0: int, y1: int) -> np.ndarray:
        """(c, y1 − y0, width) uint8."""
        self._stream.seek(y0 * self._width * 3)
        pixels = np.frombuffer(self._stream.read((y1 - y0) * self._width * 3), np.uint8).reshape(y1 - y0, self._width, 3)
        return np.moveaxis(pixels[..., self._channels], -1, 0)

    def close(self) -> None:
        """Remove the scratch file."""
        self._stream.close()
        self._file.unlink(missing_ok=True)


class Pages:
    """A multi-page TIFF by rows."""

    def __init__(self, pages: list[tiffs.PageInfo]):
        self._readers = [tiffs.PageReader(page) for page in pages]

    def rows(self, y0: int, y1: int) -> np.ndarray:
        """(c, y1 − y0, width)."""
        return np.stack([reader.rows(y0, y1) for reader in self._readers])

    def close(self) -> None:
        """Close the file."""
        for reader in self._readers:
            reader.close()


def stitch(open_fov: object, origins: dict[int, tuple[int, int]], shape: tuple[int, int, int], image: tuple[int, int], rows: int) -> Iterator[np.ndarray]:
    """Strips (c, h, x) uint16 of the mosaic, from top to bottom; a strip is valid until the next one.

    Where FOVs overlap, a pixel is that of the lowest-numbered FOV that is not 0 there in every stain: the result does not depend on the order of reading.

    Parameters
    ----------
    open_fov
        FOV → object with `rows(y0, y1)` and `close()`.
    origins
        FOV → (y, x) of its upper left corner.
    shape
        (c, y, x) of the mosaic.
    image
        (height, width) of a FOV's image.
    rows
        Height of a strip.
    """
    open_now: dict[int, object] = {}
    crossing = {f for f, (y, x) in origins.items() for g, (v, u) in origins.items() if g < f and abs(y - v) < image[0] and abs(x - u) < image[1]}
    try:
        buffer = np.empty((shape[0], min(rows, shape[1]), shape[2]), np.uint16)
        for y0 in range(0, shape[1], rows):
            y1 = min(y0 + rows, shape[1])
            strip = buffer[:, : y1 - y0]
            strip[:] = 0
            for fov, (top, left) in sorted(origins.items()):
                lo, hi = max(y0, top), min(y1, top + image[0])
                if lo >= hi:
                    continue
                if fov not in open_now:
                    open_now[fov] = open_fov(fov)
                pixels = open_now[fov].rows(lo - top, hi - top)
                target = strip[:, lo - y0 : hi - y0, left : left + image[1]]
                if fov in crossing:
                    np.copyto(target, pixels, where=(target == 0).all(axis=0))
                else:
                    target[:] = pixels
                if hi == top + image[0]:
                    open_now.pop(fov).close()
            yield strip
    finally:
        for reader in open_now.values():
            reader.close()
