"""Tiles beside a GPU: read once into memory, windows cut, normalised and given their RNA image on the device.

Done window by window on the CPU this takes several times as long as a GPU needs for all the rest. The numbers are those of `Predictor.inputs`: stains bit for
bit, the RNA image to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from istseg.artifacts.tiles import Tile
from istseg.grid import Box
from istseg.network.card import ModelCard
from istseg.network.field import reflect_box
from istseg.network.gene_image import blur_matrix, reflected
from istseg.network.rna_image import FORMS, RnaForm


@dataclass(frozen=True)
class LoadedTile:
    """What the network needs of a tile, in memory.

    Attributes
    ----------
    stains
        (c, h, w) int16 with the bits of the uint16 grey values: torch cannot pick from uint16 on every device.
    molecules
        (n,) int32 flat pixels of the transcripts, controls left out; for a model with gene colours its (h, w) int32 gene map.
    """

    tile: Tile
    stains: Tensor
    molecules: Tensor


def load(tile: Tile, card: ModelCard, pinned: bool) -> LoadedTile:
    """Read a tile for the model of a card.

    Parameters
    ----------
    pinned
        Into locked memory, from which a GPU fetches several times faster.

    Raises
    ------
    InputError
        If the tile's resolution is not the model's.
    """
    card.check_tile(tile.working_um, str(tile.folder))
    grey = tile.raw_stains()
    stains = torch.empty(grey.shape, dtype=torch.int16, pin_memory=pinned)
    # From the mapped file at once, without Python's lock.
    np.copyto(stains.numpy(), grey.view(np.int16))
    molecules = torch.from_numpy(tile.gene_map(card.genes) if card.genes else tile.transcript_pixels().astype(np.int32))
    return LoadedTile(tile, stains, molecules.pin_memory() if pinned else molecules)


class DeviceTile:
    """A loaded tile on a device.

    Parameters
    ----------
    loaded
        See `load`.
    card
        Of the model: RNA image.
    device
        Where windows are cut.
    """

    def __init__(self, loaded: LoadedTile, card: ModelCard, device: torch.device):
        self._tile = loaded.tile
        self._form = None if card.image_form is None else FORMS[card.image_form]
        self._stains = loaded.stains.to(device, non_blocking=True)
        molecules = loaded.molecules.to(device, non_blocking=True)
        self._molecules = molecules if card.genes else _counted(molecules, loaded.tile.shape)
        low, high = torch.tensor(loaded.tile.ranges, dtype=torch.float32).T[:, :, None, None].to(device)
        self._low, self._span, self._flat = low, (high - low).clamp_min(1e-6), high <= low

    def windows(self, boxes: Sequence[Box]) -> Tensor:
        """(B, 1 + K + 1, h, w) float32 of window boxes of one size, as those of `Predictor.inputs`."""
        rows, columns = (torch.from_numpy(np.stack(at)).to(self._stains.device) for at in zip(*(self._places(box) for box in boxes), strict=True))
        rows, columns = rows[:, :, None], columns[:, None, :]
        grey = self._stains[:, rows, columns].transpose(0, 1).int().bitwise_and_(0xFFFF).float()
        # A flat stain carries no information: it becomes 0.
        stains = ((grey - self._low) / self._span).masked_fill_(self._flat, 0)
        molecules = self._molecules[rows, columns][:, None].float()
        return torch.cat((stains, molecules if self._form is None else rna_images(molecules, self._form)), 1)

    def _places(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of a window box in the arrays of the region."""
        rows, columns, cover = reflect_box(self._tile, box)
        return rows + (cover[0] - self._tile.region[0]), columns + (cover[1] - self._tile.region[1])


def _counted(flat: Tensor, shape: tuple[int, int]) -> Tensor:
    """(h, w) int32 number of transcripts in each pixel. Sums of integers do not depend on their order."""
    counts = torch.zeros(shape[0] * shape[1], dtype=torch.int32, device=flat.device)
    return counts.index_add_(0, flat, torch.ones_like(flat)).reshape(shape)


def rna_images(counts: Tensor, form: RnaForm) -> Tensor:
    """`rna_image.rna_image` of a batch on its device: (B, 1, H, W) float32 counts → (B, 1, H, W) float32."""
    side = form.max_filter
    if side > 1:
        # scipy's origin: a filter of even side reaches one pixel further up and left.
        counts = F.max_pool2d(reflected(counts, side // 2, side - 1 - side // 2), side, 1)
    down, across = (_blur(size, form, counts.device) for size in counts.shape[-2:])
    return down @ counts @ across.T * form.gain


@lru_cache(maxsize=8)
def _blur(size: int, form: RnaForm, device: torch.device) -> Tensor:
    return blur_matrix(size, form).to(device)
