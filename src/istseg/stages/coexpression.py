"""coexpression: converted sample → co-expression of its genes, their colours, RNA pictures for annotators [paper: Co-expression visualization].

Out: `coexpression.parquet` (matrix), `gene_colours.csv`, `coexpression.json`, `pictures/*.png`, `rna_coexpression.zarr` (SpatialData with one image). The
sample is only read, strip by strip: memory holds a strip, the matrix and one picture.
"""

from __future__ import annotations

import logging
import re
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd

from istseg.artifacts import gene_colours
from istseg.artifacts.files import read_json, remove, whole, write_json
from istseg.artifacts.genes import draw_shares
from istseg.artifacts.sample import Sample
from istseg.artifacts.spatial import ImageWriter, finish
from istseg.converted import Points
from istseg.errors import InputError
from istseg.network.coexpression import MIN_MOLECULES, Molecules, Neighbourhoods, colours
from istseg.progress import track
from istseg.qc.drawing import scale_bar, write_png
from istseg.region import BoxUm, box_text, locate
from istseg.rna_view import RnaView
from istseg.tissue import SQUARE_UM

log = logging.getLogger("istseg")

LAYER = "rna_coexpression"
RECORD = "coexpression.json"
STRIP_UM = 250.0
_PICTURE = re.compile(r"pictures/(sample|region[0-9]+)\.png")
_MIN_PIXEL_UM = 0.1
_MIN_TRANSCRIPTS = 3
_BRIGHT = 0.5
"""Share of the tissue's mean density at which a pixel of a picture has 63 % of its full brightness."""


def run(
    *,
    sample_json: Path,
    zarr: Path,
    out: Path,
    radius_um: float,
    centres: int,
    regions: list[str],
    picture_px: int,
    spot_um: float,
    layer_um: float,
    seed: int,
) -> None:
    """Estimate the co-expression of a sample and draw its transcripts in the colours that follow.

    Parameters
    ----------
    zarr
        `<sample>.zarr`; not changed.
    out
        What the `coexpression.json` of an earlier run lists there is replaced, other files stay.
    radius_um
        Reach of a neighbourhood (`network.coexpression`).
    centres
        About so many neighbourhoods are taken, those of the transcripts with the smallest hash.
    regions
        `x0,y0,x1,y1` in µm: drawn one by one, beside the whole sample.
    picture_px
        Longest side of a picture, pixels; a pixel is not smaller than 0.1 µm.
    spot_um
        Standard deviation of a transcript's spot, µm.
    layer_um
        Pixel of the SpatialData image, µm, at least 0.1; 0: no image.
    seed
        Another seed takes other neighbourhoods.

    Raises
    ------
    InputError
        If the sample's files do not fit together, a region lies outside, the image's pixels are too small, or `out` has a `coexpression.json` of other origin.
    """
    if layer_um and not layer_um >= _MIN_PIXEL_UM:
        raise InputError(
            f"--layer-um {layer_um:g}: a pixel of the image is {_MIN_PIXEL_UM} µm at least, as those of the instruments are; 0 leaves the image out."
        )
    sample = Sample.read(sample_json)
    points = Points(zarr, sample)
    boxes = _boxes(sample, regions)
    out = Path(out)
    earlier = _earlier(out)
    squares, per_gene = points.survey()
    counts = np.fromiter(per_gene.values(), np.int64, len(per_gene))
    warnings = []
    if (counts >= MIN_MOLECULES).sum() < 2:
        warnings.append(f"Fewer than two genes have {MIN_MOLECULES} transcripts: there is no co-expression to show, all genes are grey.")
        log.warning("%s: %s", sample.sample, warnings[0])
    matrix, n_centres = estimate(sample, points, radius_um, min(centres / max(counts.sum(), 1), 1.0), seed)
    palette = colours(matrix, counts)
    for path in earlier:
        remove(path)
    _write_tables(out, sample.genes, matrix, counts, palette)
    dense = squares[squares >= _MIN_TRANSCRIPTS]
    view = RnaView(points, palette, spot_um, _BRIGHT * float(dense.mean()) / SQUARE_UM**2 if len(dense) else 1.0)
    shown = {"sample": (0.0, 0.0, *sample.size_um)} | boxes
    pictures = [_picture(out / "pictures", name, sample, view, box, picture_px) for name, box in shown.items()]
    if layer_um:
        write_layer(out / f"{LAYER}.zarr", sample, view, layer_um)
    record = {
        "sample": sample.sample,
        "genes": len(sample.genes),
        "genes_with_colour": int((counts >= MIN_MOLECULES).sum()),
        "transcripts": int(counts.sum()),
        "neighbourhoods": n_centres,
        "radius_um": radius_um,
        "spot_um": spot_um,
        "layer_um": layer_um,
        "seed": seed,
        "pictures": pictures,
        "warnings": warnings,
    }
    write_json(out / RECORD, record)
    log.info("%s: co-expression of %d genes from %d neighbourhoods, %d pictures", sample.sample, len(sample.genes), n_centres, len(pictures))


def _boxes(sample: Sample, regions: list[str]) -> dict[str, BoxUm]:
    """Name of the picture → box of each region; all problems at once."""
    boxes: dict[str, BoxUm] = {}
    problems: list[str] = []
    for i, text in enumerate(regions, 1):
        try:
            boxes[f"region{i}"] = locate(sample, text)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return boxes


def _earlier(out: Path) -> list[Path]:
    """What an earlier run wrote and this one perhaps will not: its record, which goes first, its pictures and its layer."""
    path = out / RECORD
    if not path.exists():
        return []
    try:
        record = read_json(path, "the record of an earlier run")
        pictures = [out / p["file"] for p in record["pictures"] if _PICTURE.fullmatch(p["file"])]
        return [path, *pictures, *([out / f"{LAYER}.zarr"] if record["layer_um"] else [])]
    except (InputError, KeyError, TypeError):
        raise InputError(f"{path}: is not the record of an earlier run, and would be replaced; move it away or give another --out.") from None


def estimate(sample: Sample, points: Points, radius_um: float, share: float, seed: int) -> tuple[np.ndarray, int]:
    """Co-expression of a sample's genes, strip by strip.

    Parameters
    ----------
    share
        Of the transcripts that are centres of neighbourhoods; drawn by hash of their ids, so that neither strips nor the order of the file matter.

    Returns
    -------
    (genes, genes) float64 correlations and the number of neighbourhoods.
    """
    sums = Neighbourhoods(len(sample.genes), radius_um)
    n = max(ceil(sample.size_um[0] / STRIP_UM), 1)
    for i in track(range(n), "co-expression"):
        # The first and the last strip also hold what lies outside of the image.
        low, high = -np.inf if i == 0 else i * STRIP_UM, np.inf if i == n - 1 else (i + 1) * STRIP_UM
        table = points.between(low - radius_um, high + radius_um)
        table = table[~table["is_control"]]
        y = table["y_um"].to_numpy()
        area = Molecules(table[["x_um", "y_um"]].to_numpy(), table["code"].to_numpy(), (y >= low) & (y < high))
        sums.add(area, np.flatnonzero(area.centre & (draw_shares(table["transcript_id"].to_numpy(), seed) < share)))
    return sums.correlations(), sums.centres


def _write_tables(out: Path, genes: list[str], matrix: np.ndarray, counts: np.ndarray, palette: np.ndarray) -> None:
    with whole(out / "coexpression.parquet") as part:
        pd.DataFrame(matrix.astype(np.float32), index=pd.Index(genes, name="gene"), columns=genes).to_parquet(part)
    gene_colours.write(out / "gene_colours.csv", genes, counts, palette)


def _picture(folder: Path, name: str, sample: Sample, view: RnaView, box: BoxUm, picture_px: int) -> dict[str, object]:
    """Write one picture; gives its record."""
    um_per_px = max(max(box[2] - box[0], box[3] - box[1]) / picture_px, _MIN_PIXEL_UM)
    y0, x0 = (int(v / um_per_px) for v in box[:2])
    size = [max(round((high - low) / um_per_px), 1) for low, high in ((box[0], box[2]), (box[1], box[3]))]
    picture = view.picture((y0, x0, y0 + size[0], x0 + size[1]), um_per_px)
    write_png(folder / f"{name}.png", scale_bar(picture, um_per_px))
    return {"file": f"{folder.name}/{name}.png", "um_per_px": um_per_px, "region_um": box_text(sample, box)}


def write_layer(path: Path, sample: Sample, view: RnaView, layer_um: float) -> None:
    """SpatialData of its own with the image `rna_coexpression` (red, green, blue; uint8; pyramid), in the frames of the sample's store."""
    height, width = (max(ceil(n * sample.pixel_size_um / layer_um - 1e-6), 1) for n in (sample.height_px, sample.width_px))
    to_pixel = np.diag([layer_um / sample.pixel_size_um] * 2 + [1.0])
    with whole(path) as part:
        part.mkdir()
        writer = ImageWriter(part, ["red", "green", "blue"], height, width, np.linalg.inv(sample.affine) @ to_pixel, LAYER, "uint8")
        for strip in view.strips((0, 0, height, width), layer_um):
            writer.write(np.ascontiguousarray(np.moveaxis(strip, -1, 0)))
        writer.close()
        finish(part, ["images"])
