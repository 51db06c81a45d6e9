"""Augmentation of training patches [paper: RNA2seg training].

Geometry first (crop, quarter turns, mirroring, free rotation), on transcript counts and not on the RNA image, whose blur is not to be blurred again; then the
stains' look (brightness, contrast, blur, masked crops); the dropout of membrane stains comes last, so that a dropped stain is exactly 0.
Everything is drawn from the generator given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

ROTATE_P = 0.5
BRIGHTNESS_P = 0.5
BLUR_P = 0.2
MASK_P = 0.25
"""Probability of each, per example (rotation) or per stain (the others)."""

CONTRAST, BRIGHTNESS = 0.3, 0.1
"""Largest relative change of contrast, largest shift in units of the normalised range."""
BLUR_WPX = (0.5, 1.5)
MASK_SIDE = (0.1, 0.4)
"""Side of a masked rectangle as a share of the example's."""


@dataclass(frozen=True)
class Example:
    """What the network sees of a patch and what it should say.

    Attributes
    ----------
    stains
        (c, y, x) float32 normalised, nucleus stain first.
    counts
        (y, x) float32 transcripts per pixel; for a network with gene colours the gene map, which takes the nearest pixel as well.
    flow
        (2, y, x) float32 unit flows (y, x).
    cell, teach
        (y, x) bool.
    """

    stains: np.ndarray
    counts: np.ndarray
    flow: np.ndarray
    cell: np.ndarray
    teach: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.counts.shape


def augment(example: Example, rng: np.random.Generator, crop: int, membrane_dropout: float) -> Example:
    """Draw one training example of at most crop × crop pixels."""
    example = random_window(example, rng, crop)
    example = quarter_turns(example, int(rng.integers(4)), bool(rng.integers(2)))
    stains = change_brightness(example.stains, rng)
    stains = blur(stains, rng)
    stains = mask_rectangles(stains, rng)
    return replace(example, stains=drop_membranes(stains, rng, membrane_dropout))


def random_window(example: Example, rng: np.random.Generator, crop: int) -> Example:
    """A crop around a pixel that may teach (so no crop teaches nothing), turned by any angle in half of the draws."""
    height, width = (min(crop, side) for side in example.shape)
    teaching = np.flatnonzero(example.teach)
    y, x = divmod(int(rng.choice(teaching)) if len(teaching) else example.teach.size // 2, example.shape[1])
    shift_y, shift_x = rng.random(2)
    y0 = int(np.clip(y - int(shift_y * height), 0, example.shape[0] - height))
    x0 = int(np.clip(x - int(shift_x * width), 0, example.shape[1] - width))
    turned, angle = rng.random() < ROTATE_P, rng.uniform(-np.pi / 4, np.pi / 4)
    if turned:
        return rotate(example, angle, (y0, x0), (height, width))
    box = np.s_[y0 : y0 + height, x0 : x0 + width]
    return Example(example.stains[:, *box], example.counts[box], example.flow[:, *box], example.cell[box], example.teach[box])


def quarter_turns(example: Example, turns: int, mirror: bool) -> Example:
    """Turn counter-clockwise by quarters, then mirror left and right; exact. What is not square makes half turns only: batches keep their shape."""
    if example.shape[0] != example.shape[1]:
        turns -= turns % 2
    arrays = [np.rot90(a, turns, axes=(-2, -1)) for a in (example.stains, example.counts, example.flow, example.cell, example.teach)]
    flow_y, flow_x = arrays[2]
    for _ in range(turns):
        flow_y, flow_x = -flow_x, flow_y
    if mirror:
        arrays = [a[..., ::-1] for a in arrays]
        flow_y, flow_x = flow_y[:, ::-1], -flow_x[:, ::-1]
    arrays[2] = np.stack((flow_y, flow_x))
    return Example(*(np.ascontiguousarray(a) for a in arrays))


def rotate(example: Example, angle: float, corner: tuple[int, int], shape: tuple[int, int]) -> Example:
    """The window at `corner` (y, x) of `shape`, turned about its middle by `angle` (radians).

    Stains are interpolated and continued by reflection where the turned window leaves the patch; nothing teaches there. Labels, flows and counts take the
    nearest pixel, which keeps flows of unit length and the density of transcripts.
    """
    (y0, x0), (height, width) = corner, shape
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])  # (x, y) of the result, from its middle → (x, y) of the patch
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    to_patch = np.column_stack((turn, np.array([x0, y0]) + middle - turn @ middle))

    def warp(image: np.ndarray, how: int, border: int) -> np.ndarray:
        return cv2.warpAffine(image, to_patch, (width, height), flags=how | cv2.WARP_INVERSE_MAP, borderMode=border, borderValue=0)

    def nearest(image: np.ndarray, border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
        return warp(image, cv2.INTER_NEAREST, border)

    source_y, source_x = (nearest(np.ascontiguousarray(f)) for f in example.flow)
    return Example(
        np.stack([warp(np.ascontiguousarray(s), cv2.INTER_LINEAR, cv2.BORDER_REFLECT) for s in example.stains]),
        nearest(np.ascontiguousarray(example.counts, np.float32), cv2.BORDER_REFLECT),
        np.stack((cos * source_y - sin * source_x, cos * source_x + sin * source_y)).astype(np.float32),
        nearest(example.cell.astype(np.uint8)) > 0,
        nearest(example.teach.astype(np.uint8)) > 0,
    )


def change_brightness(stains: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale and shift stains one by one."""
    n = len(stains)
    chosen = rng.random(n) < BRIGHTNESS_P
    scale = np.where(chosen, 1 + rng.uniform(-CONTRAST, CONTRAST, n), 1).astype(np.float32)
    shift = np.where(chosen, rng.uniform(-BRIGHTNESS, BRIGHTNESS, n), 0).astype(np.float32)
    return stains * scale[:, None, None] + shift[:, None, None]


def blur(stains: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur some stains by a Gaussian."""
    chosen, sigma = rng.random(len(stains)) < BLUR_P, rng.uniform(*BLUR_WPX, len(stains))
    return np.stack([cv2.GaussianBlur(s, (0, 0), float(w), borderType=cv2.BORDER_REFLECT) if c else s for s, c, w in zip(stains, chosen, sigma, strict=True)])


def mask_rectangles(stains: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Set a rectangle to 0 in some stains, each its own."""
    stains = stains.copy()
    height, width = stains.shape[1:]
    chosen = rng.random(len(stains)) < MASK_P
    sides, places = rng.uniform(*MASK_SIDE, (len(stains), 2)), rng.random((len(stains), 2))
    for stain, hit, (share_y, share_x), (at_y, at_x) in zip(stains, chosen, sides, places, strict=True):
        if hit:
            h, w = int(share_y * height), int(share_x * width)
            y, x = int(at_y * (height - h)), int(at_x * (width - w))
            stain[y : y + h, x : x + w] = 0
    return stains


def drop_membranes(stains: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Set each membrane stain to 0 with a probability, on its own; never the nucleus stain."""
    dropped = rng.random(len(stains) - 1) < probability
    keep = np.concatenate(([True], ~dropped))
    return np.where(keep[:, None, None], stains, np.float32(0))
