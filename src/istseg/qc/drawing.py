"""Drawing on RGB arrays: composites of stains, contours, molecules, scale bars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFont

from istseg.artifacts.files import whole

CELL = (255, 214, 10)
NEIGHBOUR = (235, 235, 235)
NUCLEUS = (64, 224, 255)
MOLECULE = (255, 64, 190)
_NUCLEUS_TINT = np.array([0.25, 0.45, 1.0], np.float32)
_MEMBRANE_TINT = np.array([0.1, 0.75, 0.2], np.float32)
_RNA_TINT = np.array([1.0, 0.15, 0.65], np.float32)
_SUBPIXEL_BITS = 4
_BLOCK = 4096


def composite(nucleus: np.ndarray, membranes: np.ndarray, rna: np.ndarray | None = None) -> np.ndarray:
    """Nucleus stain blue, brightest membrane stain green, RNA magenta.

    Parameters
    ----------
    nucleus, rna
        float (y, x), 0 to 1 (clipped).
    membranes
        float (k, y, x), any k.

    Returns
    -------
    uint8 (y, x, 3).

    """
    picture = np.clip(nucleus, 0, 1)[..., None] * _NUCLEUS_TINT
    if len(membranes):
        picture = picture + np.clip(membranes.max(axis=0), 0, 1)[..., None] * _MEMBRANE_TINT
    if rna is not None:
        picture = picture + np.clip(rna, 0, 1)[..., None] * _RNA_TINT
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def contours(
    picture: np.ndarray,
    polygons: np.ndarray,
    colour: tuple[int, int, int],
    thickness: int = 1,
    opacity: float = 1.0,
    move: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Draw the outlines of polygons into a picture, a block of them at a time: moved ones are copies.

    Parameters
    ----------
    polygons
        x, y in pixels of the picture, or what `move` makes such of: (n, 2) → (n, 2).
    """
    target = picture if opacity >= 1 else picture.copy()
    for at in range(0, len(polygons), _BLOCK):
        block = polygons[at : at + _BLOCK]
        rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(shapely.get_parts(shapely.transform(block, move) if move else block))]
        # Pixel i covers [i, i+1), OpenCV speaks of pixel centres.
        fixed = [np.rint((ring - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32) for ring in rings]
        if fixed:
            cv2.polylines(target, fixed, True, colour, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    if opacity < 1:
        cv2.addWeighted(target, opacity, picture, 1 - opacity, 0, dst=picture)


def molecules(picture: np.ndarray, xy: np.ndarray, colours: np.ndarray | None = None, radius: float = 1.2) -> None:
    """Draw molecules at (n, 2) points (x, y in pixels of the picture) into it, each in its colour (n, 3) in 0…1, else all in `MOLECULE`."""
    inks = [MOLECULE] * len(xy) if colours is None else [tuple(c) for c in np.rint(colours * 255).astype(int).tolist()]
    scale = 2**_SUBPIXEL_BITS
    for (x, y), ink in zip(np.rint((xy - 0.5) * scale).astype(int).tolist(), inks, strict=True):
        cv2.circle(picture, (x, y), int(radius * scale), ink, -1, cv2.LINE_AA, _SUBPIXEL_BITS)


def scale_bar(picture: np.ndarray, um_per_px: float) -> np.ndarray:
    """The picture with a bar of a round length, about a fifth of its width, at the lower right."""
    length_um = _round_down(picture.shape[1] * um_per_px / 4)
    length = round(length_um / um_per_px)
    size = max(11, min(picture.shape[:2]) // 30)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    right, bottom = picture.shape[1] - size, picture.shape[0] - size
    text = f"{length_um:g} µm" if length_um < 1000 else f"{length_um / 1000:g} mm"
    # A dark edge keeps bar and text readable on bright tissue.
    draw.rectangle((right - length - 1, bottom - size // 4 - 1, right + 1, bottom + 1), fill=(0, 0, 0))
    draw.rectangle((right - length, bottom - size // 4, right, bottom), fill=(255, 255, 255))
    place = (right - length / 2, bottom - size // 2)
    draw.text(place, text, fill=(255, 255, 255), font=_font(size), anchor="mb", stroke_width=2, stroke_fill=(0, 0, 0))
    return np.asarray(image)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font has no µ; DejaVu comes with matplotlib, which scanpy needs.
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _round_down(value: float) -> float:
    decade = 10.0 ** np.floor(np.log10(value))
    return float(max(m * decade for m in (1, 2, 5) if m * decade <= value * (1 + 1e-9)))


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write uint8 (y, x, 3) RGB or (y, x) grey."""
    with whole(path) as part:
        Image.fromarray(picture).save(part, format="PNG")
