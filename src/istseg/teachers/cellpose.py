"""Teacher `cellpose`: Cellpose 3 `nuclei` on the nucleus stain, `cyto3` on each membrane stain with the nucleus stain as second channel.

Source: the paper, Candidate cell segmentation; Stringer and Pachitariu 2025 (Cellpose 3). The network runs through Cellpose's public interface, window by
window on the sample's grid, on stains normalised by the sample's ranges and at a fixed rescaling; flows are blended and turned into masks by this package, so
labels do not depend on the tiling. Weights are files that are checked; nothing is ever downloaded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from istseg.artifacts.files import sha256
from istseg.artifacts.tiles import Tile
from istseg.errors import InputError, as_written
from istseg.grid import Box
from istseg.network.dynamics import labels_from_field
from istseg.network.field import blend_windows, stain_window
from istseg.network.inference import open_device
from istseg.teachers.base import CELLS, NUCLEI, Teacher
from istseg.teachers.watershed import EXPANSION_UM, Sizes

NUCLEI_DIAMETER, CYTO_DIAMETER = 17.0, 30.0
"""Pixels to which the training objects of `nuclei` and `cyto3` were rescaled: the image is rescaled so that its objects have that size. Weights that were
trained to another size say so in their file (`diam_mean`), which then counts, as in Cellpose.
"""
LOGIT_THRESHOLD, FLOW_ERROR = 0.0, 0.4
"""Cellpose's own defaults."""
FLOW_SCALE = 5.0
"""Cellpose's network gives flows times 5."""
STEPS = 100
BATCH_WINDOWS = {"cpu": 1, "cuda": 8}
BATCH_TILES = {"cpu": 8, "cuda": 64}
"""Pieces of 224 px that the network takes at a time."""


class CellposeTeacher(Teacher):
    """See the module.

    Parameters
    ----------
    nuclei_weights, nuclei_sha256, cyto_weights, cyto_sha256
        Weights files of Cellpose 3 and the digests that they must have (None: any).
    sizes
        Diameters and smallest areas.
    device
        `cpu` or `cuda`; never anything else than asked for.

    Raises
    ------
    InputError
        If weights are missing, have another digest or are not of a Cellpose 3 network; all problems at once.
    DeviceError
        If the device is not there.

    """

    name = "cellpose"
    needs = ("Cellpose 3 weights `nuclei` (--nuclei-weights)", "Cellpose 3 weights `cyto3` (--cyto-weights)")

    def __init__(self, nuclei_weights: Path | None, nuclei_sha256: str | None, cyto_weights: Path | None, cyto_sha256: str | None, sizes: Sizes, device: str):
        problems: list[str] = []
        self.sha256 = {
            "nuclei": check_weights(nuclei_weights, nuclei_sha256, "nuclei", problems),
            "cyto": check_weights(cyto_weights, cyto_sha256, "cyto", problems),
        }
        if problems:
            raise InputError(problems)
        self.sizes = sizes
        self.device = open_device(device)
        self._nuclei = load(nuclei_weights, NUCLEI_DIAMETER, self.device)
        self._cyto = load(cyto_weights, CYTO_DIAMETER, self.device)

    @property
    def method(self) -> dict[str, Any]:
        """See `Teacher`."""
        return {
            "teacher": self.name,
            "nuclei_sha256": self.sha256["nuclei"],
            "cyto_sha256": self.sha256["cyto"],
            "logit_threshold": LOGIT_THRESHOLD,
            "flow_error": FLOW_ERROR,
            "device": self.device.type,
            **asdict(self.sizes),
        }

    def label(self, tile: Tile) -> dict[str, np.ndarray]:
        """Layers `nuclei` and `cells_<stain>` of each membrane stain; `cells_expansion` without any."""
        sizes, um = self.sizes, tile.working_um
        nuclei = self._labels(tile, self._nuclei, (0,), sizes.nucleus_diameter_um, sizes.min_nucleus_area_um2)
        layers = {NUCLEI: nuclei}
        for channel, stain in enumerate(tile.stains[1:], 1):
            layers[CELLS + stain] = self._labels(tile, self._cyto, (channel, 0), sizes.cell_diameter_um, sizes.min_cell_area_um2)
        if len(tile.stains) == 1:
            from skimage.segmentation import expand_labels

            layers[f"{CELLS}expansion"] = expand_labels(nuclei, EXPANSION_UM / um).astype(np.int32)
        return layers

    def _labels(self, tile: Tile, model: Any, channels: tuple[int, ...], diameter_um: float, min_area_um2: float) -> np.ndarray:
        rescale = float(model.diam_mean) / (diameter_um / tile.working_um)

        def inputs(tile: Tile, box: Box) -> np.ndarray:
            chosen = inside_mosaic(tile, box, stain_window(tile, box)[list(channels)])
            # Cellpose's networks have two channels; a missing second one is zero.
            return np.concatenate([chosen, np.zeros((2 - len(chosen), *chosen.shape[1:]), np.float32)])

        def predict(windows: Tensor) -> Tensor:
            return run_windows(model, windows, rescale, BATCH_TILES[self.device.type])

        field = blend_windows(tile, predict, batch_size=BATCH_WINDOWS[self.device.type], inputs=inputs)
        return labels_from_field(field, LOGIT_THRESHOLD, flow_error=FLOW_ERROR, min_area_wpx=min_area_um2 / tile.working_um**2, steps=STEPS, device=self.device)


def inside_mosaic(tile: Tile, box: Box, window: np.ndarray) -> np.ndarray:
    """(C, h, w) stains of a window box, 0 outside the mosaic, as Cellpose itself pads pictures.

    Continued by reflection, a cell that the mosaic's edge cuts looks whole, its flow is not that of its part, and the flow error takes it away.
    """
    y0, x0, y1, x1 = box
    grid = tile.window_grid
    rows, columns = np.arange(y0, y1), np.arange(x0, x1)
    return window * ((rows >= 0) & (rows < grid.height))[:, None] * ((columns >= 0) & (columns < grid.width))


def run_windows(model: Any, windows: Tensor, rescale: float, batch_size: int) -> Tensor:
    """Fields of windows.

    Parameters
    ----------
    model
        `cellpose.models.CellposeModel`.
    windows
        (n, 2, y, x) float32, normalised.
    rescale
        Size of the image for the network, times the working size.
    batch_size
        Pieces of 224 px at a time.

    Returns
    -------
    (n, 3, y, x) float32: flow y, flow x in unit scale, logit.

    """
    stack = windows.permute(0, 2, 3, 1).numpy()
    if len(stack) == 1:
        places: dict[str, Any] = {"channel_axis": -1}
        stack = stack[0]
    else:
        places = {"channel_axis": 3, "z_axis": 0}
    # resample gives the flows at the size of the window; normalize=False keeps the sample's normalisation.
    _, (_, flow, logit), _ = model.eval(stack, **places, batch_size=batch_size, normalize=False, rescale=rescale, resample=True, compute_masks=False)
    size = windows.shape[-2:]
    flow, logit = np.reshape(flow, (2, -1, *size)) / np.float32(FLOW_SCALE), np.reshape(logit, (-1, *size))
    return torch.from_numpy(np.concatenate([flow.swapaxes(0, 1), logit[:, None]], axis=1).astype(np.float32, copy=False))


def check_weights(path: Path | None, digest: str | None, role: str, problems: list[str]) -> str:
    """Digest of a weights file; problems are appended."""
    option = f"--{role}-weights"
    if path is None:
        problems.append(
            f"the teacher `cellpose` needs {option}: the path of Cellpose 3 weights. Nothing is downloaded in a task; or choose the teacher watershed."
        )
        return ""
    if not Path(path).is_file():
        problems.append(f"{option} {path}: no such file. Give the path of Cellpose 3 weights; nothing is downloaded in a task.")
        return ""
    found = sha256(path)
    if digest and found != digest.lower():
        problems.append(f"{option} {path}: has the sha256 {found}, not {digest} as asked for. The file is another one or was damaged; fetch it again.")
    return found


def staged_problems(weights: Mapping[str, Path | None], params: Mapping[str, Any]) -> list[str]:
    """What is wrong with weights before a run; roles without a file are left out (the check of parameters names them).

    Parameters
    ----------
    weights
        Role (`nuclei`, `cyto`) → where the file is staged.
    params
        With the digests (`<role>_sha256`) and the paths that people wrote (`<role>_weights`).
    """
    problems: list[str] = []
    for role, path in weights.items():
        if path is None:
            continue
        found: list[str] = []
        check_weights(path, params.get(f"{role}_sha256"), role, found)
        if not found:
            try:
                load_state(path)
            except InputError as error:
                found += error.problems
        problems += [as_written(text, path, params.get(f"{role}_weights")) for text in found]
    return problems


def load(path: Path, diameter: float, device: torch.device) -> Any:
    """`CellposeModel` with the weights of a file.

    Parameters
    ----------
    diameter
        Pixels to which its training objects were rescaled, where the file does not say.

    Raises
    ------
    InputError
        If the file does not hold the weights of a Cellpose 3 network.

    """
    load_state(path)
    # For every stack of windows cellpose warns of an option that is not used here.
    logging.getLogger("cellpose").setLevel(logging.ERROR)
    return _network(str(path), device, diameter)


def load_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a weights file, whose names and shapes are those of a Cellpose 3 network.

    Cellpose itself ignores tensors that are missing or have other names, and would then run with random ones.

    Raises
    ------
    InputError
        If the file does not hold the weights of a Cellpose 3 network.

    """
    advice = "Give weights of Cellpose 3 (`nuclei`, `cyto3`, or fine-tuned from them); those of Cellpose 4 are of another network."
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        stored_shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise InputError(
            f"{path}: cannot be read as Cellpose weights ({type(error).__name__}); it may be cut off, or hold code, which is never run. {advice}"
        ) from None
    expected = _network(False, torch.device("cpu"), CYTO_DIAMETER).net.state_dict()
    wrong = [n for n, tensor in expected.items() if not n.startswith("diam_") and stored_shapes.get(n) != tuple(tensor.shape)]
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} of {len(expected)} tensors of a Cellpose 3 network are missing or have another shape, e.g. {wrong[0]}. {advice}"
        )
    return stored


def _network(weights: str | bool, device: torch.device, diameter: float) -> Any:
    # Imported here: cellpose takes seconds to load, and its start is checked with the device.
    from cellpose.models import CellposeModel

    return CellposeModel(pretrained_model=weights, model_type=None, device=device, diam_mean=diameter)
