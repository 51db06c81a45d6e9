"""The network at work on one device: precision, memory, batches."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from istseg.artifacts.tiles import Tile
from istseg.errors import DeviceError, InputError, IstsegError
from istseg.grid import Box
from istseg.network.card import ModelCard
from istseg.network.field import count_window, stain_window
from istseg.network.fused import fused
from istseg.network.model import Rna2Seg
from istseg.network.rna_image import rna_channel

log = logging.getLogger("istseg")

PRECISIONS = {"auto": None, "bf16": torch.bfloat16, "float32": torch.float32}
"""Precision of the arithmetic by the name of the option; `auto` asks the device and the purpose."""

_FLOAT16_INPUT = 32.0
"""Brightest input, in units of the 99th percentile, that is computed in float16: far from the end of its range, 65504, with what the network makes of it."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def open_device(name: str) -> torch.device:
    """Device `cpu` or `cuda`, set up to compute the same each time.

    Raises
    ------
    DeviceError
        If it is unknown or not there. Nothing else is used instead.
    """
    _keep_freed_memory()
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda":
        raise DeviceError(f"the device {name!r} is unknown; use cpu or cuda.")
    if not torch.cuda.is_available():
        reason = "this build of torch has no CUDA" if torch.version.cuda is None else "torch sees no usable GPU"
        raise DeviceError(f"--device cuda was asked for, but {reason}; start the task on a GPU node with the container's GPU option, or use --device cpu.")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda")


def on_host(values: Tensor) -> np.ndarray:
    """An array of the same numbers, through locked memory where the device has its own: several times faster."""
    if not values.is_cuda:
        return values.numpy()
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values).numpy()


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks: layers and windows take megabytes, and getting them from the kernel anew takes a third of the time; threads wait for
    each other in it.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        log.debug("this C library has no mallopt: inference on the CPU is slower")
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


_chosen: ContextVar[torch.dtype | None] = ContextVar("precision", default=None)


def choose_precision(asked: str, device: torch.device, training: bool = False) -> torch.dtype:
    """Precision by the name of the option; bfloat16 on a device that does not multiply it fast is logged.

    `auto` is bfloat16 where the hardware multiplies it fast (GPU; CPU with AMX), else float32. A GPU that only predicts gets float16: it rounds eight times
    less, older GPUs have it too, and a window that leaves its range is computed again (`Predictor.predict`); gradients would leave it often.

    Raises
    ------
    InputError
        If there is no such precision.
    """
    if asked not in PRECISIONS:
        raise InputError(f"--precision {asked}: must be one of {', '.join(PRECISIONS)}.")
    chosen = PRECISIONS[asked] or (_fast_precision(device) if training else _predicting_precision(device))
    if chosen == torch.bfloat16 != _fast_precision(device):
        log.warning("--precision %s: this %s does not multiply bfloat16 fast; float32 would be faster here", asked, device.type)
    return chosen


@contextmanager
def computing_in(precision: torch.dtype) -> Iterator[None]:
    """Make `precision_of` give this precision inside the block: as with `torch.autocast`, what is called in it need not hand the choice on."""
    token = _chosen.set(precision)
    try:
        yield
    finally:
        _chosen.reset(token)


def precision_of(device: torch.device) -> torch.dtype:
    """Precision of the block of `computing_in`; outside of one that of `choose_precision("auto", device, training=True)`."""
    return _chosen.get() or _fast_precision(device)


def autocast_to(device: torch.device, precision: torch.dtype):
    """Compute in a precision; float32 as it is, without a context."""
    return torch.autocast(device.type, precision) if precision != torch.float32 else nullcontext()


def _fast_precision(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def _predicting_precision(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else _fast_precision(device)


class Predictor:
    """Gives the inputs of windows and predicts them: the two ends of `field.blend_windows`.

    Parameters
    ----------
    model
        Network in evaluation mode; it is moved to the device. Called with stains and RNA channel; its attribute `flow_scale` is what it multiplies flows by.
    card
        Its card: RNA image and resolution.
    device
        Of `open_device`.
    precision
        Of the arithmetic; default: that of the block of `computing_in`, outside of one that of `choose_precision("auto", device)`.

    Attributes
    ----------
    one_by_one
        A window's result does not depend on how many others are computed with it. Else only batches of one size give equal results.
    """

    def __init__(self, model: Rna2Seg, card: ModelCard, device: torch.device, precision: torch.dtype | None = None):
        self.card = card
        self.device = device
        self.precision = precision or _chosen.get() or _predicting_precision(device)
        self._model = model.eval().to(device, memory_format=torch.channels_last)
        self._fused = fused(self._model, self.precision)
        self.one_by_one = self._fused is not None and device.type == "cpu"
        self._counts: tuple[str, np.ndarray] | None = None
        self._reading = Lock()

    def inputs(self, tile: Tile, box: Box) -> np.ndarray:
        """(1 + K + 1, h, w) float32 of a window: normalised stains, RNA image (with gene colours: gene map) last.

        The RNA image is made of the window's own counts, so that it does not depend on the tile, as in training.
        """
        rna = self.rna(count_window(tile, self._molecules(tile), box))
        return np.concatenate((stain_window(tile, box), rna[None]))

    def _molecules(self, tile: Tile) -> np.ndarray:
        """Transcript counts (with gene colours: the gene map) of a tile; those of the last one are kept. Threads that ask together wait for one of them."""
        with self._reading:
            if self._counts is None or self._counts[0] != str(tile.folder):
                self.card.check_tile(tile.working_um, str(tile.folder))
                self._counts = str(tile.folder), tile.gene_map(self.card.genes) if self.card.genes else tile.transcript_counts()
            return self._counts[1]

    def rna(self, counts: np.ndarray) -> np.ndarray:
        """(h, w) float32 RNA channel of the transcript counts (with gene colours: of the gene map) of a window."""
        return rna_channel(counts, self.card.image_form)

    @property
    def method(self) -> dict[str, str]:
        """What decides how numbers are rounded: `device`, `precision`, `network` (`fused` or `plain`)."""
        return {"device": self.device.type, "precision": str(self.precision).removeprefix("torch."), "network": "fused" if self._fused else "plain"}

    @torch.inference_mode()
    def predict(self, batch: Tensor) -> Tensor:
        """(B, 1 + K + 1, H, W) → (B, 3, H, W) float32: flow y, flow x in unit scale, logit; further channels as the network gives them.

        In float16, windows with a stain brighter than `_FLOAT16_INPUT` are computed in float32.

        Raises
        ------
        IstsegError
            If a prediction is not finite.
        """
        batch = batch.to(self.device, non_blocking=True)
        out = (self._fused(batch[:, :-1], batch[:, -1:]) if self._fused else self._plain(batch, self.precision)).float()
        if self.precision == torch.float16:
            beyond = (batch[:, :-1].abs().amax((1, 2, 3)) > _FLOAT16_INPUT) | ~torch.isfinite(out).flatten(1).all(1)
            if beyond.any():
                log.info("%d windows are too bright for float16 and are computed in float32", int(beyond.sum()))
                # All windows of the batch, so that its size stays the same.
                out[beyond] = self._plain(batch, torch.float32).float()[beyond]
        if not torch.isfinite(out).all():
            raise IstsegError(f"the model {self.card.name} predicts values that are not finite; its weights are broken or do not fit this input.")
        out[:, :2] /= self._model.flow_scale
        return out

    def _plain(self, batch: Tensor, precision: torch.dtype) -> Tensor:
        stains = batch[:, :-1].contiguous(memory_format=torch.channels_last)
        with autocast_to(self.device, precision):
            return self._model(stains, batch[:, -1:])
