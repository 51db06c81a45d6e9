"""Counter-based randomness: every number is a function of the seed, a stream and the place, never of the order of the calls."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_CHUNK = 32
_SHIFT = 1 << 20  # makes negative indices positive, as SeedSequence wants
# Mean of the squared weights of a cubic B-spline in one dimension (151/315), squared: the variance of the interpolated field.
_SPLINE_STD = 151 / 315

STREAMS = {
    name: number
    for number, name in enumerate(
        (
            "seeds",
            "zone",
            "zone2",
            "holes",
            "edge",
            "warp_x",
            "warp_y",
            "warp_fine",
            "chromatin",
            "grain",
            "rough",
            "patches",
            "ghosts",
            "molecules",
            "noise",
            "stain",
            "slide",
            "vendor",
            "fovs",
            "gain",
            "autofluorescence",
        ),
        1,
    )
}


def generator(seed: int, stream: str, *place: int) -> np.random.Generator:
    """Philox generator keyed by seed, stream and integer place (each ≥ −2^20)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, STREAMS[stream], *(int(p) + _SHIFT for p in place)])))


class Field:
    """Smooth Gaussian noise of about unit variance on the whole plane.

    Standard normal nodes on a lattice, interpolated by cubic B-splines.

    Parameters
    ----------
    spacing_um
        Distance of the nodes; structures are about 1.5 times as wide.
    """

    def __init__(self, seed: int, stream: str, spacing_um: float, variant: int = 0):
        self.spacing = spacing_um
        self._chunk = lru_cache(maxsize=256)(lambda cy, cx: generator(seed, stream, variant, cy, cx).standard_normal((_CHUNK, _CHUNK), dtype=np.float32))

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Values at n points in µm → (n,) float64."""
        if len(x) == 0:
            return np.empty(0)
        ix, wx = _weights(np.asarray(x, float) / self.spacing)
        iy, wy = _weights(np.asarray(y, float) / self.spacing)
        y0, x0 = int(iy.min()), int(ix.min())
        nodes = self._nodes(y0, x0, int(iy.max()) + 4, int(ix.max()) + 4)
        total = np.zeros(len(ix))
        for j in range(4):
            for i in range(4):
                total += wy[:, j] * wx[:, i] * nodes[iy - y0 + j, ix - x0 + i]
        return total / _SPLINE_STD

    def grid(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Values on the grid of coordinates y × x in µm → (len(y), len(x)) float32."""
        iy, wy = _weights(np.asarray(y, float) / self.spacing)
        ix, wx = _weights(np.asarray(x, float) / self.spacing)
        nodes = self._nodes(int(iy[0]), int(ix[0]), int(iy[-1]) + 4, int(ix[-1]) + 4)
        return (_dense(iy, wy, nodes.shape[0]) @ nodes @ _dense(ix, wx, nodes.shape[1]).T) / np.float32(_SPLINE_STD)

    def _nodes(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        cy0, cx0, cy1, cx1 = y0 // _CHUNK, x0 // _CHUNK, (y1 - 1) // _CHUNK + 1, (x1 - 1) // _CHUNK + 1
        patch = np.block([[self._chunk(cy, cx) for cx in range(cx0, cx1)] for cy in range(cy0, cy1)])
        return patch[y0 - cy0 * _CHUNK : y1 - cy0 * _CHUNK, x0 - cx0 * _CHUNK : x1 - cx0 * _CHUNK]


def _weights(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First node (n,) and cubic B-spline weights (n, 4)."""
    first = np.floor(u).astype(np.int64)
    t = u - first
    w = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    return first - 1, w


def _dense(first: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    matrix = np.zeros((len(first), n), np.float32)
    rows = np.arange(len(first))
    for k in range(4):
        matrix[rows, first - first[0] + k] = weights[:, k]
    return matrix
