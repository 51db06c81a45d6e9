"""Images, labels and run files of a simulated CosMx slide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tifffile

from istseg.simulate.cosmx_slide import Slide
from istseg.simulate.optics import NUCLEUS_STAIN
from istseg.simulate.tissue import edges_of

_PIECE = 1024
_CHANNELS = "BGYRU"
"""Letters of the camera's channels; the nucleus stain comes last, as on the instrument."""
_COMPOSITE_TOP = (9000.0, 4500.0, 5500.0)
"""Grey values above the camera's offset that become 255 in the composite: nucleus, first and second stain."""
_RUN = "20260101_120000_S1"


def write_pixels(slide: Slide, fov: int, corner: tuple[float, float]) -> None:
    """Image of a FOV whose corner lies at (y, x) µm: an RGB picture (A) or a page per stain (B, C)."""
    height, width = slide.frame
    stains = slide.recipe.optics.stains
    step = (slide.pixel_um, slide.pixel_um)
    pixels = np.empty((len(stains), height, width), np.uint16)
    for y in range(0, height, _PIECE):
        for x in range(0, width, _PIECE):
            box = (y, x, min(y + _PIECE, height), min(x + _PIECE, width))
            pixels[:, box[0] : box[2], box[1] : box[3]] = slide.recipe.exposures(box, corner, step, (height, width), frame=fov)[0]
    if slide.generation == "A":
        return _write_composite(slide.folder / "CellComposite" / f"CellComposite_F{fov:03d}.jpg", pixels)
    return _write_morphology(slide, fov, np.roll(pixels, -1, axis=0), [*stains[1:], stains[0]])


def write_labels(slide: Slide, fov: int, labels: np.ndarray, inside: np.ndarray) -> None:
    """`CellLabels` and `CompartmentLabels` of a FOV."""
    if slide.generation == "A":
        paths = [slide.folder / kind / f"{kind}_F{fov:03d}.tif" for kind in ("CellLabels", "CompartmentLabels")]
    else:
        paths = [slide.folder / "CellStatsDir" / f"FOV{fov:05d}" / f"{kind}_F{fov:05d}.tif" for kind in ("CellLabels", "CompartmentLabels")]
    for path, image in zip(paths, (labels.astype(np.uint16), inside), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, image, compression="zlib", photometric="minisblack", rowsperstrip=23, metadata=None)


def compartments(labels: np.ndarray, nuclei: np.ndarray) -> np.ndarray:
    """uint8: 0 outside of cells, 1 nuclear, 2 cytoplasm, 3 membrane."""
    inside = np.where(labels > 0, 2, 0)
    inside[(labels > 0) & (edges_of(labels) > 0)] = 3
    inside[(labels > 0) & (nuclei > 0)] = 1
    return inside.astype(np.uint8)


def write_run_files(slide: Slide) -> None:
    """`RunSummary`: the pixel size of a frame that is not the usual one is nowhere else in generation A."""
    folder = slide.folder / "RunSummary"
    folder.mkdir()
    fovs = len(slide.corners)
    config = {"Run_Number": _RUN, "ImPixel_nm": f"{slide.pixel_um * 1000:.4f}", "ImRows": slide.frame[0], "ImColumns": slide.frame[1], "FovCount": fovs}
    (folder / f"{_RUN}_ExptConfig.txt").write_text("".join(f"{key}: {value}\n" for key, value in config.items()))
    if slide.generation == "A":
        return
    rows = [f"1,{(slide.place(f)[0]) * slide.pixel_um / 1000:.6f},{slide.place(f)[1] * slide.pixel_um / 1000:.6f},0,0,1,{f},{f}" for f in range(1, fovs + 1)]
    (folder / "latest.fovs.csv").write_text("\n".join(rows) + "\n")


def _write_composite(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    offset = np.percentile(pixels, 1, axis=(1, 2), keepdims=True) if pixels.size else 0
    top = np.array(_COMPOSITE_TOP)[: len(pixels), None, None]
    shown = np.clip((pixels - offset) / top * 255, 0, 255).astype(np.uint8)
    picture = np.zeros((*pixels.shape[1:], 3), np.uint8)
    for channel, image in zip((2, 0, 1), shown, strict=False):
        picture[..., channel] = image
    Image.fromarray(picture).save(path, quality=95, subsampling=0)


def _write_morphology(slide: Slide, fov: int, pixels: np.ndarray, stains: list[str]) -> None:
    letters = _CHANNELS[len(_CHANNELS) - len(stains) :] if len(stains) <= len(_CHANNELS) else "".join(chr(ord("A") + i) for i in range(len(stains)))
    reagents = [{"BiologicalTarget": "DNA" if s == NUCLEUS_STAIN else s, "Fluorophore": {"ChannelId": c}} for s, c in zip(stains, letters, strict=True)]
    description = {"ChannelOrder": letters, "PixelSize_um": slide.pixel_um, "FOV": fov, "MorphologyKit": {"Name": "Simulated", "MorphologyReagents": reagents}}
    path = slide.folder / "CellStatsDir" / "Morphology2D" / f"{_RUN}_C902_P99_N99_F{fov:05d}.TIF"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tiff:
        for page in pixels:
            tiff.write(page, photometric="minisblack", description=json.dumps(description), metadata=None, contiguous=False)
