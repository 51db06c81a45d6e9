"""Pictures as data URIs of bounded size."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from istseg.errors import InputError

TOTAL_BYTES = 13_000_000
"""All pictures of a report together; with plotly.js and the figures a report of many samples stays below 25 MB."""
OUTLINE_BYTES = 4_000_000
"""Outlines of the regions of all samples together."""
_QUALITIES = (88, 80, 70, 60)
_SHRINK = 0.8


@dataclass(frozen=True)
class Budget:
    """Bytes that one sample may take: pictures before base64, `outlines` of all its regions."""

    main_overview: int
    overview: int
    crop: int
    max_crops: int
    layer: int
    outlines: int

    @classmethod
    def of(cls, n_samples: int) -> Budget:
        """Share the total among the samples; few samples get full quality."""
        share = TOTAL_BYTES * 3 // 4 // max(n_samples, 1)
        main = min(300_000, share * 3 // 10)
        crop = min(14_000, max(4_000, share // 80))
        max_crops = min(48, max(6, share * 4 // 10 // crop))
        return cls(
            main_overview=main,
            overview=min(150_000, main // 2),
            crop=crop,
            max_crops=max_crops,
            layer=min(90_000, share // 40),
            outlines=OUTLINE_BYTES // max(n_samples, 1),
        )


def data_uri(path: str | Path, max_bytes: int, max_side: int, tint: str | None = None) -> tuple[str, int, int]:
    """WebP of a picture as `data:` URI, with its width and height; grey values tinted with a colour (`#rrggbb`) if one is given.

    Quality first, then size are lowered until it fits in `max_bytes` (before base64).

    Raises
    ------
    InputError
        If the file is missing or no picture.
    """
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB") if tint is None else ImageOps.colorize(opened.convert("L"), "#000000", tint)
    except FileNotFoundError:
        raise InputError(f"{path}: no such picture, but the record beside it names it; run its stage again.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error}); run its stage again.") from None
    # Tissue takes about 0.15 bytes per pixel and more: what cannot fit need not be tried.
    side = min(max_side, int((6 * max_bytes) ** 0.5))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    while True:
        for quality in _QUALITIES:
            encoded = _webp(picture, quality)
            if len(encoded) <= max_bytes or max(picture.size) <= 32:
                return "data:image/webp;base64," + base64.b64encode(encoded).decode(), *picture.size
        picture = picture.resize((max(1, int(picture.width * _SHRINK)), max(1, int(picture.height * _SHRINK))), Image.Resampling.LANCZOS)


def _webp(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()
