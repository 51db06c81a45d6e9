"""The RNA image: transcripts as a picture for the network [paper: RNA image generation].

Counts per pixel → maximum filter → Gaussian. OpenCV gives scipy's result within 2e-7 and far faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import cv2
import numpy as np

MERSCOPE_ZOOM = 1200 / 512
"""Full-resolution pixels per working pixel in the paper's training (RNA2seg training: 1200 px resized to 512)."""


@dataclass(frozen=True)
class RnaForm:
    """One way to make the image.

    Attributes
    ----------
    max_filter
        Side of the maximum filter in pixels; 1 for none.
    sigma
        Of the Gaussian, in pixels; 0 for none.
    gain
        Factor on the result.
    radius
        Of the Gaussian's kernel, in pixels; None for scipy's, 4 sigma.
    """

    max_filter: int
    sigma: float
    gain: float = 1.0
    radius: int | None = None

    @property
    def side(self) -> int:
        """Of the Gaussian's kernel, in pixels."""
        return 2 * (int(4 * self.sigma + 0.5) if self.radius is None else self.radius) + 1


def _resized(sigma_px: float) -> RnaForm:
    """Form at working resolution of an image that was made at full resolution with a 2 × 2 maximum filter and then resized by area.

    A lone transcript becomes four pixels (variance 1/4 px² each way) blurred by `sigma_px`, of which resizing keeps the mass per area.
    """
    return RnaForm(1, sqrt(sigma_px**2 + 0.25) / MERSCOPE_ZOOM, 4 / MERSCOPE_ZOOM**2)


FORMS: dict[str, RnaForm] = {
    "working": RnaForm(2, 2.0),
    "paper": _resized(2.0),
    "published": _resized(0.5),
}
"""`working`: at working resolution, what our models use. `paper`: the paper's k = 2, σ = 2 at full resolution, resized by area.
`published`: the same with the σ = 0.5 of the package rna2seg 0.1.5, whose nearest-neighbour resizing loses 26 % of isolated transcripts and is not repeated."""


def rna_image(counts: np.ndarray, form: str | RnaForm) -> np.ndarray:
    """Make the RNA image of a window, a patch or any other picture.

    Parameters
    ----------
    counts
        (H, W) transcripts per pixel, any number type.
    form
        Key of `FORMS`, or a form.

    Returns
    -------
    (H, W) float32. Beyond the borders the counts are continued by reflection.
    """
    how = FORMS[form] if isinstance(form, str) else form
    image = np.ascontiguousarray(counts, np.float32)
    if how.max_filter > 1:
        # scipy's origin: a filter of even side reaches one pixel further up and left.
        middle = how.max_filter // 2
        image = cv2.dilate(image, np.ones((how.max_filter,) * 2, np.uint8), anchor=(middle, middle), borderType=cv2.BORDER_REFLECT)
    if how.sigma > 0:
        # OpenCV's own choice of the side depends on the type of the image.
        image = cv2.GaussianBlur(image, (how.side, how.side), how.sigma, borderType=cv2.BORDER_REFLECT)
    return image * np.float32(how.gain) if how.gain != 1 else image


def rna_channel(molecules: np.ndarray, form: str | None) -> np.ndarray:
    """The channel that the network gets, (H, W) float32: the RNA image of counts, or with `form` None a gene map as it is, which the network itself draws."""
    return molecules.astype(np.float32) if form is None else rna_image(molecules, form)
