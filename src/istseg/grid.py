"""The window grid of a sample and the tiles on it.

All boxes are `(y0, x0, y1, x1)` in working pixels, half-open. See docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil

WINDOW_WPX = 512
"""Side of a window in working pixels: what the network was made for (paper, RNA2seg training: 1200 px resized to 512)."""

DEFAULT_WORKING_UM = 0.253
"""Size of a working pixel in µm."""

DEFAULT_TILE_UM = 750.0
"""Side of a tile's core in µm."""

DEFAULT_OVERLAP_UM = 32.384
"""Overlap of neighbouring windows in µm: 128 working pixels."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class WindowGrid:
    """Windows of `window` px whose cores of `stride` px tile a mosaic of `height` × `width` working pixels.

    Parameters
    ----------
    height, width
        Size of the mosaic in working pixels.
    overlap
        By how many working pixels neighbouring windows overlap; even, at least a cell's diameter.
    """

    height: int
    width: int
    overlap: int = 128
    window: int = WINDOW_WPX

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a mosaic of {self.height} x {self.width} working pixels is empty")
        if self.overlap % 2 or not 0 <= self.overlap <= self.window // 2:
            raise ValueError(f"the overlap must be even and between 0 and {self.window // 2} working pixels, it is {self.overlap}")

    @property
    def stride(self) -> int:
        return self.window - self.overlap

    @property
    def margin(self) -> int:
        """How far a window reaches past its core on each side."""
        return self.overlap // 2

    @property
    def shape(self) -> tuple[int, int]:
        """Number of windows down and across."""
        return ceil(self.height / self.stride), ceil(self.width / self.stride)

    def clip(self, box: Box) -> Box:
        y0, x0, y1, x1 = box
        return max(y0, 0), max(x0, 0), min(y1, self.height), min(x1, self.width)

    def core(self, gy: int, gx: int) -> Box:
        """Core of a window, clipped to the mosaic."""
        s = self.stride
        return self.clip((gy * s, gx * s, (gy + 1) * s, (gx + 1) * s))

    def window_box(self, gy: int, gx: int) -> Box:
        """The whole window; reaches outside the mosaic at its borders."""
        y0, x0 = gy * self.stride - self.margin, gx * self.stride - self.margin
        return y0, x0, y0 + self.window, x0 + self.window

    def tile_core(self, ty: int, tx: int, n: int) -> Box:
        """Core of the tile that holds windows [ty·n, (ty+1)·n) × [tx·n, (tx+1)·n)."""
        s = self.stride * n
        return self.clip((ty * s, tx * s, (ty + 1) * s, (tx + 1) * s))

    def tile_region(self, ty: int, tx: int, n: int) -> Box:
        """Core plus one ring of windows, clipped: all that the windows touching core + halo can see."""
        s, reach = self.stride * n, self.stride + self.margin
        return self.clip((ty * s - reach, tx * s - reach, (ty + 1) * s + reach, (tx + 1) * s + reach))

    def tile_windows(self, ty: int, tx: int, n: int, ring: int = 0) -> list[tuple[int, int]]:
        """Windows of a tile (and of `ring` rings around it) that exist, row by row."""
        gh, gw = self.shape
        ys = range(max(ty * n - ring, 0), min((ty + 1) * n + ring, gh))
        xs = range(max(tx * n - ring, 0), min((tx + 1) * n + ring, gw))
        return [(gy, gx) for gy in ys for gx in xs]

    def tiles(self, n: int) -> list[tuple[int, int]]:
        """All tiles of n × n windows, row by row."""
        gh, gw = self.shape
        return [(ty, tx) for ty in range(ceil(gh / n)) for tx in range(ceil(gw / n))]

    def windows_across(self, tile_um: float, working_um: float) -> int:
        """Windows along the side of a tile whose core is at least `tile_um` wide."""
        return max(ceil(tile_um / (self.stride * working_um) - 1e-6), 1)

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def tile_id(ty: int, tx: int) -> str:
    """Name of a tile, e.g. `y003x012`: sorts row by row."""
    return f"y{ty:03d}x{tx:03d}"
