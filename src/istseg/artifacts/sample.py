"""`sample.json`: what `convert` learnt of a sample; every later stage reads frames, stains and ranges here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from istseg.artifacts.files import read_record, write_json
from istseg.errors import InputError

FORMAT = 1


@dataclass
class Stain:
    """One channel of the image.

    Attributes
    ----------
    name
        As the instrument names it, e.g. `DAPI`, `Cellbound1`.
    role
        `nucleus` (exactly one per sample), `membrane` (given to the network and the teacher) or `other` (kept in the image only).
    low, high
        1st and 99th percentile of the pixels that were imaged, over the whole sample, in raw grey values [paper: normalisation].
    minimum, maximum, mean
        Of the imaged pixels, raw grey values.
    saturated_fraction
        Share of imaged pixels at the largest value of the raw type.
    """

    name: str
    role: str
    low: float
    high: float
    minimum: float = 0.0
    maximum: float = 0.0
    mean: float = 0.0
    saturated_fraction: float = 0.0


@dataclass
class Sample:
    """Facts of one converted sample.

    Attributes
    ----------
    micron_to_pixel
        3×3 affine, µm → full-resolution pixel (x, y).
    pixel_size_um
        Side of a full-resolution pixel (geometric mean of x and y).
    height_px, width_px
        Full-resolution mosaic.
    stains
        In the order of the image's channels, nucleus stain first.
    transcripts
        Counts: `total`, `genes` (not controls), `controls`, `outside_image`, `by_plane` {plane: n}.
    transcript_bands_um
        Upper ends in y (µm from the mosaic's top edge, i.e. pixel y × pixel size) of the parts of the points: part i holds band i.
    details
        Platform facts for the report: generation, planes, plane_choice, fovs, fov_boxes_px, orientation evidence, warnings...
    checksums
        Of the raw tables, sha256 by relative path.
    """

    sample: str
    platform: str
    micron_to_pixel: list[list[float]]
    pixel_size_um: float
    height_px: int
    width_px: int
    stains: list[Stain]
    genes: list[str]
    controls: list[str]
    transcripts: dict[str, Any]
    transcript_bands_um: list[float]
    n_vendor_cells: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def nucleus(self) -> Stain:
        return next(s for s in self.stains if s.role == "nucleus")

    @property
    def membranes(self) -> list[Stain]:
        return [s for s in self.stains if s.role == "membrane"]

    @property
    def size_um(self) -> tuple[float, float]:
        """(height, width) of the mosaic."""
        return self.height_px * self.pixel_size_um, self.width_px * self.pixel_size_um

    @property
    def affine(self) -> np.ndarray:
        """(3, 3) float64, µm → full-resolution pixel."""
        return np.asarray(self.micron_to_pixel, float)

    @property
    def field_boxes_px(self) -> np.ndarray:
        """(n, 4) float64 y0, x0, y1, x1 of the instrument's fields of view, full-resolution pixels; empty where they are not known."""
        return np.array(list(self.details.get("fov_boxes_px", {}).values()), float).reshape(-1, 4)

    def write(self, path: str | Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> Sample:
        raw = read_record(path, "convert", FORMAT)
        try:
            raw["stains"] = [Stain(**s) for s in raw["stains"]]
            sample = cls(**raw)
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: is not a sample.json of this version ({error}); run convert again.") from None
        if sum(s.role == "nucleus" for s in sample.stains) != 1:
            raise InputError(f"{path}: needs exactly one stain with the role nucleus, it has {[(s.name, s.role) for s in sample.stains]}.")
        return sample


def apply_affine(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Map (n, 2) points (x, y) by a 3×3 affine → (n, 2) float64."""
    return np.asarray(xy, float) @ matrix[:2, :2].T + matrix[:2, 2]
