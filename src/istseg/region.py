"""Regions that a user chooses on a sample: `x0,y0,x1,y1` in µm of the platform's frame."""

from __future__ import annotations

import numpy as np

from istseg.artifacts.sample import Sample, apply_affine
from istseg.errors import InputError

BoxUm = tuple[float, float, float, float]
"""(y0, x0, y1, x1) in µm from the mosaic's top left corner."""


def parse(text: str) -> BoxUm:
    """Corners (x0, y0, x1, y1) in µm of the platform's frame.

    Raises
    ------
    InputError
        If these are not four numbers, or the region is empty.
    """
    try:
        x0, y0, x1, y1 = (float(value) for value in text.split(","))
    except ValueError:
        raise InputError(f"--region {text}: must be four numbers x0,y0,x1,y1 in µm, separated by commas.") from None
    if not (np.isfinite([x0, y0, x1, y1]).all() and x0 < x1 and y0 < y1):
        raise InputError(f"--region {text}: is empty; x0 must be less than x1 and y0 less than y1.")
    return x0, y0, x1, y1


def locate(sample: Sample, text: str) -> BoxUm:
    """Box of a region, cut off at the mosaic's edges.

    Raises
    ------
    InputError
        If the region cannot be read or lies outside of the mosaic; the message says where the mosaic is.
    """
    x0, y0, x1, y1 = parse(text)
    height, width = sample.size_um
    corners = apply_affine(sample.affine, np.array([[x0, y0], [x1, y1]])) * sample.pixel_size_um
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    box = max(float(top), 0.0), max(float(left), 0.0), min(float(bottom), height), min(float(right), width)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise InputError(f"--region {text}: lies outside of the sample {sample.sample}, which covers {mosaic_text(sample)}.")
    return box


def mosaic_text(sample: Sample) -> str:
    """Where the mosaic lies, as `x0,y0,x1,y1` in µm of the platform's frame."""
    return box_text(sample, (0.0, 0.0, *sample.size_um))


def box_text(sample: Sample, box: BoxUm) -> str:
    """A box as `x0,y0,x1,y1` in µm of the platform's frame, rounded to nm: what `--region` takes."""
    corners = np.array([[box[1], box[0]], [box[3], box[2]]]) / sample.pixel_size_um
    there = apply_affine(np.linalg.inv(sample.affine), corners)
    return ",".join(f"{v:.3f}".rstrip("0").rstrip(".") for v in (*there.min(0), *there.max(0)))
