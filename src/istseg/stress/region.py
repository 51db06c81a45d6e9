"""A region of a converted sample as one tile of its own, at working resolution, with the sample's normalisation."""

from __future__ import annotations

from math import ceil, floor

import numpy as np
import pandas as pd

from istseg.artifacts.sample import Sample
from istseg.artifacts.tiles import Tile
from istseg.converted import Points, StainImage
from istseg.grid import WindowGrid
from istseg.region import BoxUm
from istseg.resample import working_image, working_size
from istseg.tissue import SQUARE_UM

OVERLAP_WPX = 128


def densest(squares: np.ndarray, side_um: float, sample: Sample) -> BoxUm:
    """The box of `side_um` (all of a mosaic that is smaller) where the most transcripts are; of equal places the uppermost, then leftmost.

    Parameters
    ----------
    squares
        (rows, columns) transcripts in the squares of `tissue`. They find the place: the box has the middle of the best block of whole squares, moved into the
        mosaic where it would reach beyond.
    """
    n = max(round(side_um / SQUARE_UM), 1)
    high, wide = (min(n, size) for size in squares.shape)
    sums = np.pad(squares.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    middle = (row + high / 2) * SQUARE_UM, (column + wide / 2) * SQUARE_UM
    (y0, y1), (x0, x1) = (_span(place, side_um, size) for place, size in zip(middle, sample.size_um, strict=True))
    return y0, x0, y1, x1


def _span(middle: float, side: float, size: float) -> tuple[float, float]:
    start = max(min(middle - side / 2, size - side), 0.0)
    return float(start), float(min(start + side, size))


def cut(sample: Sample, image: StainImage, points: Points, box: BoxUm, working_um: float, genes: dict[str, int]) -> tuple[Tile, np.ndarray, pd.DataFrame]:
    """A tile that is all core, its stains and its transcripts, not written yet.

    Its working pixels are those of the sample's tiles; its frame begins at its own corner.

    Parameters
    ----------
    box
        Rounded outwards to whole working pixels.
    genes
        Transcripts of each gene in the whole sample.

    Returns
    -------
    Tile, uint16 (c, y, x) stains, transcripts with the columns of `artifacts.tiles`.
    """
    factor = working_um / sample.pixel_size_um
    full = sample.height_px, sample.width_px
    size = [working_size(n, factor) for n in full]
    y0, x0 = (max(floor(v / working_um + 1e-6), 0) for v in box[:2])
    y1, x1 = (min(ceil(v / working_um - 1e-6), n) for v, n in zip(box[2:], size, strict=True))
    grid = WindowGrid(y1 - y0, x1 - x0, OVERLAP_WPX)
    stains = [sample.nucleus, *sample.membranes]
    to_working = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1.0]]) @ np.diag([1 / factor, 1 / factor, 1.0]) @ sample.affine
    whole = (0, 0, grid.height, grid.width)
    tile = Tile(
        sample=sample.sample,
        tile_id="region",
        grid=grid.as_dict(),
        core=whole,
        region=whole,
        windows=[(gy, gx) for gy in range(grid.shape[0]) for gx in range(grid.shape[1])],
        ring_windows=[],
        stains=[s.name for s in stains],
        ranges=[(s.low, s.high) for s in stains],
        working_um=working_um,
        micron_to_working=to_working.tolist(),
    )
    pixels = np.stack([working_image(lambda b, name=s.name: image.read(name, b), (y0, x0, y1, x1), factor, full) for s in stains])
    table = points.between(y0 * working_um, y1 * working_um)
    table = table[(table["x_um"] >= x0 * working_um) & (table["x_um"] < x1 * working_um)].reset_index(drop=True)
    transcripts = pd.DataFrame(
        {
            "transcript_id": table["transcript_id"],
            "x_wpx": table["x_um"] / working_um - x0,
            "y_wpx": table["y_um"] / working_um - y0,
            "gene": pd.Categorical.from_codes(table["code"], points.categories),
            "is_control": table["is_control"],
        }
    )
    return tile, pixels, transcripts
