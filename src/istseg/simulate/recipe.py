"""What is simulated, and the objects that make it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from istseg.grid import Box
from istseg.simulate.molecules import Molecules
from istseg.simulate.optics import CAMERAS, Optics, covering, expose, kind_of, resample, vignette
from istseg.simulate.outlines import Outlines
from istseg.simulate.randomness import generator
from istseg.simulate.tissue import Tissue

OUTSIDE_UM = 4.0
"""How far outside of the mosaic transcripts still occur."""


@dataclass(frozen=True)
class Recipe:
    """Parameters of a simulated sample; sizes of the mosaic in µm (scene frame). `depth`: on how many levels of z transcripts lie.

    `degraded_contour`, `autofluorescence`: see `Optics`.
    """

    width_um: float
    height_um: float
    planes: int
    stains: tuple[str, ...]
    degraded_fraction: float
    degraded_contour: float
    transcripts_per_um2: float
    empty_fraction: float
    seed: int
    depth: int
    autofluorescence: float = 0.0

    def __reduce__(self) -> tuple[object, ...]:
        """Only the parameters travel to other processes, not what was made of them."""
        return Recipe, tuple(getattr(self, f.name) for f in fields(self))

    @cached_property
    def tissue(self) -> Tissue:
        """Its cells."""
        return Tissue(self.seed, self.width_um, self.height_um, self.empty_fraction, self.degraded_fraction)

    @cached_property
    def optics(self) -> Optics:
        """Its stains."""
        return Optics(self.tissue, list(self.stains), self.planes, self.degraded_contour, self.autofluorescence)

    @cached_property
    def molecules(self) -> Molecules:
        """Its transcripts."""
        return Molecules(self.tissue, self.transcripts_per_um2, self.depth)

    @cached_property
    def outlines(self) -> Outlines:
        """Its polygons."""
        return Outlines(self.tissue, self.width_um, self.height_um)

    def exposures(self, box: Box, origin_um: tuple[float, float], step_um: tuple[float, float], field_px: tuple[float, float], frame: int) -> np.ndarray:
        """Grey values (planes, stains, y, x) uint16 of a part of an image.

        Parameters
        ----------
        box
            Pixels (y0, x0, y1, x1) of the image.
        origin_um, step_um
            (y, x) of the image's upper left corner in the scene and of a pixel's sides.
        field_px
            (y, x) size of the camera's field: the illumination falls off towards its edges.
        frame
            Number of the image, so that two images have different noise.
        """
        y0, x0, y1, x1 = box
        corner = origin_um[0] + y0 * step_um[0], origin_um[1] + x0 * step_um[1]
        region = covering(corner, ((y1 - y0) * step_um[0], (x1 - x0) * step_um[1]))
        light = self.optics.light(region)
        shade = vignette(np.arange(y0, y1) + 0.5, np.arange(x0, x1) + 0.5, field_px)
        result = np.empty((*light.shape[:2], y1 - y0, x1 - x0), np.uint16)
        for plane in range(light.shape[0]):
            for i, stain in enumerate(self.optics.stains):
                on_camera = resample(light[plane, i], region, corner, step_um, result.shape[2:])
                result[plane, i] = expose(on_camera, CAMERAS[kind_of(stain)], shade, generator(self.seed, "noise", frame, plane, i, y0, x0))
        return result
