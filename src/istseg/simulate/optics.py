"""What a microscope sees of the tissue: stains as light on the geometry's grid, and a camera that turns light into grey values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from istseg.grid import Box
from istseg.simulate.panel import TYPES, parameter
from istseg.simulate.randomness import Field, generator
from istseg.simulate.seeds import BLOCK_UM, PIXEL_UM, block_box, blocks_of, grow
from istseg.simulate.tissue import CellTable, Tissue, edges_of

NUCLEUS_STAIN = "DAPI"
_CYTOPLASM_STAINS = ("polyt", "rrna", "18s", "cytoplasm", "g")
_HALO_PX = 96
_HAZE_STEP = 8
_PLANE_STEP_UM = 1.5
_DEFOCUS_UM_PER_UM = 0.22
_GHOSTS_PER_BLOCK = 16
_AUTOFLUORESCENCE = {"nucleus": 0.05, "ring": 1.0, "cytoplasm": 1.0}
"""How strong autofluorescence is in each kind of stain: lipofuscin shines less where nuclear dyes are recorded."""
_HAZE = {"nucleus": 0.35, "ring": 0.3, "cytoplasm": 0.2}  # share of the light that is scattered widely


@dataclass(frozen=True)
class Camera:
    """Grey value = offset + gain × light × illumination, with shot noise of variance `shot` per grey value and read noise `read`."""

    offset: float
    gain: float
    shot: float
    read: float


CAMERAS = {"nucleus": Camera(1250, 14000, 1.2, 40), "ring": Camera(900, 5200, 0.35, 22), "cytoplasm": Camera(1750, 4200, 0.5, 28)}
"""Levels and noise are near those of the public MERSCOPE liver and brain crops."""


def kind_of(stain: str) -> str:
    """`nucleus`, `ring` (membrane) or `cytoplasm`: how a stain of that name looks."""
    if stain == NUCLEUS_STAIN:
        return "nucleus"
    return "cytoplasm" if stain.lower() in _CYTOPLASM_STAINS else "ring"


def best_plane(planes: int) -> int:
    """The plane in focus: the middle one."""
    return (planes - 1) // 2


class Optics:
    """Light of all stains.

    Parameters
    ----------
    stains
        Without the nucleus stain, which is always first in the result.
    degraded_contour
        Share of the contour that cells marked `degraded` lose in every ring stain, each at its own place.
    autofluorescence
        Mean light of granules some µm wide that lie all over the tissue, the same ones in every stain; 1 is as bright as a strong stain.
    """

    def __init__(self, tissue: Tissue, stains: list[str], planes: int, degraded_contour: float, autofluorescence: float = 0.0):
        self.tissue, self.planes, self.degraded_contour, self.autofluorescence = tissue, planes, degraded_contour, autofluorescence
        self.stains = [NUCLEUS_STAIN, *stains]
        seed = tissue.seed
        self._chromatin = Field(seed, "chromatin", 0.55)
        self._clumps = Field(seed, "chromatin", 1.3, 1)
        self._grain = Field(seed, "grain", 0.6)
        self._mottle = Field(seed, "grain", 2.2, 1)
        self._patches = [Field(seed, "patches", 4.0, variant) for variant in range(len(self.stains))]
        self._granules = Field(seed, "autofluorescence", 2.0)
        self._gains = self._marker_gains()
        self.ghosts = lru_cache(maxsize=256)(self._ghosts)

    def light(self, box: Box) -> np.ndarray:
        """(planes, stains, y, x) float32 of a box in geometry pixels; about 1 where a stain is strong."""
        # Haze is made on every eighth pixel of the plane: the window starts on one, wherever the box lies.
        window = tuple(v // _HAZE_STEP * _HAZE_STEP for v in grow(box, _HALO_PX)[:2]) + tuple(-(-v // _HAZE_STEP) * _HAZE_STEP for v in grow(box, _HALO_PX)[2:])
        numbers, nuclei = self.tissue.labels(window)
        table = self.tissue.cells(window)
        index = table.index(numbers)
        scene = _Scene(window, index, nuclei, table)
        focused = [self._nucleus(scene)] + [self._ring(scene, i) if kind_of(s) == "ring" else self._cytoplasm(scene, i) for i, s in enumerate(self.stains) if i]
        if self.autofluorescence:
            own = self._own_light(scene)
            focused = [image + own * np.float32(_AUTOFLUORESCENCE[kind_of(s)]) for image, s in zip(focused, self.stains, strict=True)]
        ghosts = self._ghost_light(window)
        inner = np.s_[box[0] - window[0] : box[2] - window[0], box[1] - window[1] : box[3] - window[1]]
        result = np.empty((self.planes, len(self.stains), box[2] - box[0], box[3] - box[1]), np.float32)
        for plane in range(self.planes):
            away = _PLANE_STEP_UM * (plane - best_plane(self.planes))
            for i, image in enumerate(focused):
                light = image if i else image + ghosts * np.float32(np.exp(away / 6))
                blurred = _blur(light, 0.17 + _DEFOCUS_UM_PER_UM * abs(away)) * np.float32(np.exp(-abs(away) / 14))
                result[plane, i] = (blurred + _haze(blurred, 5.0) * np.float32(_HAZE[kind_of(self.stains[i])]))[inner]
        return result

    def _own_light(self, scene: _Scene) -> np.ndarray:
        """Autofluorescence of the tissue."""
        ys, xs = scene.axes
        granules = np.abs(self._granules.grid(ys, xs)) * np.float32(self.autofluorescence * np.sqrt(np.pi / 2))
        return np.where(self.tissue.layout.empty_grid(ys, xs), np.float32(0), granules)

    def _nucleus(self, scene: _Scene) -> np.ndarray:
        inside = (scene.nuclei > 0).astype(np.float32)
        amplitude = scene.of_cell(0.62 * scene.table["brightness"][:, 0])
        texture = 1 + 0.22 * self._chromatin.grid(*scene.axes) + 0.16 * self._clumps.grid(*scene.axes)
        # A nucleus is thicker in its middle.
        dome = 0.45 + 0.55 * _blur(inside, 0.9) ** 1.5
        return inside * amplitude * np.maximum(texture, 0.3) * dome + 0.015 * (scene.index < scene.table.size)

    def _ring(self, scene: _Scene, stain: int) -> np.ndarray:
        table = scene.table
        gain = scene.of_cell(self._gains[stain][table["kind"]] * table["brightness"][:, 1])
        edges = edges_of(scene.index)
        # Bright and faint stretches along the contour.
        rim = edges * (0.85 + 0.3 * np.tanh(self._patches[stain].grid(*scene.axes)))
        cell = (scene.index < table.size).astype(np.float32)
        # The stain also sits just outside of a free border: its light comes from the nearest cell.
        gain_out = cv2.dilate(gain, np.ones((3, 3), np.uint8))
        kept = self._kept(scene, stain)
        fill = 0.22 * gain * cell * (1 + 0.25 * self._grain.grid(*scene.axes)) * (1 - 0.35 * (scene.nuclei > 0))
        ring = _blur(rim * kept, 0.2) * np.where(cell > 0, gain, gain_out) * 1.5 * (1 + 0.2 * self._grain.grid(*scene.axes))
        return np.maximum(ring + fill, 0)

    def _kept(self, scene: _Scene, stain: int) -> np.ndarray:
        """1 where contours are kept, 0 at the removed arcs of degraded cells, the neighbours' side of the border included."""
        kept = np.ones(scene.index.shape, np.float32)
        rows = np.flatnonzero(scene.table["degraded"])
        if not len(rows) or self.degraded_contour == 0:
            return kept
        degraded = np.append(scene.table["degraded"], False)[scene.index]
        yy, xx = np.nonzero(degraded)
        key = scene.index[yy, xx]
        x0, y0 = scene.window[1], scene.window[0]
        angle = np.arctan2((yy + y0 + 0.5) * PIXEL_UM - scene.table["y"][key], (xx + x0 + 0.5) * PIXEL_UM - scene.table["x"][key]) / (2 * np.pi)
        # Every stain loses its own part: the starts of the arcs are a golden section apart.
        start = (scene.table["arc"][key] + stain * 0.6180339887) % 1.0
        gone = (angle - start) % 1.0 < self.degraded_contour
        kept[yy[gone], xx[gone]] = 0
        return cv2.erode(kept, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))

    def _cytoplasm(self, scene: _Scene, stain: int) -> np.ndarray:
        table = scene.table
        gain = scene.of_cell(parameter("cytoplasm")[table["kind"]] * table["brightness"][:, 2]) * 0.8
        cell = (scene.index < table.size).astype(np.float32)
        inside = (scene.nuclei > 0).astype(np.float32)
        thick = 0.35 + 0.65 * _blur(cell * (edges_of(scene.index) == 0), 0.55)
        around = _blur(inside, 1.4)
        grain = 1 + 0.20 * self._grain.grid(*scene.axes) + 0.14 * self._mottle.grid(*scene.axes)
        body = gain * cell * np.maximum(grain, 0.2) * thick * (0.75 + 0.5 * around) * (1 - 0.45 * inside)
        return body + 0.02 * (1 + 0.3 * self._mottle.grid(*scene.axes)).clip(0)

    def _marker_gains(self) -> list[np.ndarray]:
        """Brightness of each cell type in each stain: the first ring stain shows all cells, the others some types more than others."""
        gains, rings = [], 0
        for i, stain in enumerate(self.stains):
            gain = parameter("membrane").astype(float)
            if kind_of(stain) == "ring":
                if rings:
                    gain = gain * generator(self.tissue.seed, "gain", i).choice([0.12, 0.6, 1.2], len(TYPES), p=[0.3, 0.3, 0.4])
                rings += 1
            gains.append(gain)
        return gains

    def _ghosts(self, by: int, bx: int) -> np.ndarray:
        """Out-of-focus nuclei of other planes of a block: (n, 6) x, y, radius, stretch, angle, brightness; µm."""
        random = generator(self.tissue.seed, "ghosts", by, bx)
        n = random.poisson(_GHOSTS_PER_BLOCK)
        top, left = (v * PIXEL_UM for v in block_box(by, bx)[:2])
        ghosts = np.column_stack(
            [
                left + random.random(n) * BLOCK_UM,
                top + random.random(n) * BLOCK_UM,
                random.uniform(2.2, 4.2, n),
                random.uniform(1, 1.5, n),
                random.uniform(0, np.pi, n),
                random.uniform(0.06, 0.32, n),
            ]
        )
        return ghosts[~self.tissue.layout.empty_at(ghosts[:, 0], ghosts[:, 1])]

    def _ghost_light(self, window: Box) -> np.ndarray:
        light = np.zeros((window[2] - window[0], window[3] - window[1]), np.float32)
        by0, bx0, by1, bx1 = blocks_of(grow(window, 60))
        for by in range(by0, by1):
            for bx in range(bx0, bx1):
                for x, y, radius, stretch, angle, brightness in self.ghosts(by, bx):
                    _add_blob(light, x / PIXEL_UM - window[1], y / PIXEL_UM - window[0], radius / PIXEL_UM, stretch, angle, brightness)
        return light


@dataclass(frozen=True)
class _Scene:
    """A window of the tissue; `index` holds rows of `table` and `table.size` outside of cells."""

    window: Box
    index: np.ndarray
    nuclei: np.ndarray
    table: CellTable

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        y0, x0, y1, x1 = self.window
        return (np.arange(y0, y1) + 0.5) * PIXEL_UM, (np.arange(x0, x1) + 0.5) * PIXEL_UM

    def of_cell(self, values: np.ndarray) -> np.ndarray:
        """Value of each pixel's cell, 0 outside; float32."""
        return np.append(values, 0).astype(np.float32)[self.index]


def expose(light: np.ndarray, camera: Camera, illumination: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Grey values uint16 of light (y, x) that is already on the camera's pixels."""
    signal = np.maximum(light, 0) * illumination * np.float32(camera.gain)
    noise = random.standard_normal(light.shape, dtype=np.float32) * np.sqrt(np.float32(camera.shot) * signal + np.float32(camera.read**2))
    return np.clip(np.rint(signal + noise + np.float32(camera.offset)), 0, 65535).astype(np.uint16)


def resample(light: np.ndarray, box: Box, origin_um: tuple[float, float], step_um: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Light (y, x) of a box in geometry pixels at the centres of `shape` pixels of size `step_um` (y, x) whose corner lies at `origin_um` (y, x)."""
    sy, sx = step_um[0] / PIXEL_UM, step_um[1] / PIXEL_UM
    ty = (origin_um[0] + 0.5 * step_um[0]) / PIXEL_UM - 0.5 - box[0]
    tx = (origin_um[1] + 0.5 * step_um[1]) / PIXEL_UM - 0.5 - box[1]
    matrix = np.array([[sx, 0, tx], [0, sy, ty]])
    return cv2.warpAffine(light, matrix, (shape[1], shape[0]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)


def vignette(y: np.ndarray, x: np.ndarray, period: tuple[float, float], strength: float = 0.14) -> np.ndarray:
    """(len(y), len(x)) float32: light falls off towards the edges of fields of view of size `period` (y, x) pixels."""
    ry, rx = (2 * ((v % p) / p) - 1 for v, p in zip((y, x), period, strict=True))
    return (1 - strength * (ry[:, None] ** 2 + rx[None, :] ** 2) / 2).astype(np.float32)


def covering(origin_um: tuple[float, float], size_um: tuple[float, float]) -> Box:
    """Box in geometry pixels around a rectangle in µm (y, x), with a margin for interpolation."""
    return tuple(int(np.floor(o / PIXEL_UM)) - 2 for o in origin_um) + tuple(
        int(np.ceil((o + s) / PIXEL_UM)) + 2 for o, s in zip(origin_um, size_um, strict=True)
    )


def _blur(image: np.ndarray, sigma_um: float) -> np.ndarray:
    sigma = sigma_um / PIXEL_UM
    return cv2.GaussianBlur(np.asarray(image, np.float32), (2 * int(3 * sigma + 1) + 1,) * 2, sigma)


def _haze(image: np.ndarray, sigma_um: float) -> np.ndarray:
    """Very wide blur, at an eighth of the resolution."""
    small = cv2.resize(image, (image.shape[1] // _HAZE_STEP, image.shape[0] // _HAZE_STEP), interpolation=cv2.INTER_AREA)
    small = _blur(small, sigma_um / _HAZE_STEP)
    return cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _add_blob(light: np.ndarray, x: float, y: float, radius: float, stretch: float, angle: float, brightness: float) -> None:
    """Add a soft ellipse."""
    reach = radius * stretch * 2
    y0, y1, x0, x1 = max(int(y - reach), 0), min(int(y + reach), light.shape[0]), max(int(x - reach), 0), min(int(x + reach), light.shape[1])
    if y1 <= y0 or x1 <= x0:
        return
    dy, dx = np.arange(y0, y1, dtype=np.float32)[:, None] + 0.5 - np.float32(y), np.arange(x0, x1, dtype=np.float32)[None, :] + 0.5 - np.float32(x)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    rho = ((c * dx + s * dy) / np.float32(radius * stretch)) ** 2 + ((c * dy - s * dx) / np.float32(radius)) ** 2
    light[y0:y1, x0:x1] += np.float32(brightness) * np.exp(-(rho**2))
