"""Training batches: crops of stored tissues, painted, augmented, with targets. What nothing shows is no target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from istseg.network.gene_image import reflected
from istseg.network.rna_image import FORMS
from istseg.pretrain.paint import Scene, paint
from istseg.pretrain.randomness import Draw, blur
from istseg.pretrain.tissue import FLOW_STORED, MAX_CELLS, Tissues

MEMBRANES = {0: 0.14, 1: 0.30, 2: 0.24, 3: 0.18, 4: 0.08, 5: 0.06}
"""Number of membrane stains of a batch, and how often."""
NUCLEUS_DROPOUT, MEMBRANE_DROPOUT, RNA_DROPOUT = 0.02, 0.25, 0.08
SEEN_NUCLEUS_PX = 40
SEEN_CONTRAST = 0.15
"""A stain shows a cell when its mean there is so much above the background's, in units of the normalised range."""
_RNA_FORMS = ("working", "paper")


@dataclass(frozen=True)
class Crops:
    """Crops of tissues.

    Attributes
    ----------
    labels
        (B, S, S) int64.
    nuclei
        (B, S, S) bool.
    flow
        (B, 2, S, S) float32 unit flows.
    """

    labels: Tensor
    nuclei: Tensor
    flow: Tensor


@dataclass(frozen=True)
class Lesson:
    """A training batch: inputs `stains` (B, 1 + K, S, S) and `rna` (B, 1, S, S); targets `maps` (B, C, S, S), `cell` and `teach` (B, S, S) bool."""

    stains: Tensor
    rna: Tensor
    maps: Tensor
    cell: Tensor
    teach: Tensor

    def split(self, size: int) -> list[Lesson]:
        """Smaller batches."""
        parts = zip(*(t.split(size) for t in (self.stains, self.rna, self.maps, self.cell, self.teach)), strict=True)
        return [Lesson(*part) for part in parts]


Targets = Callable[[Crops], Tensor]


def flows(crops: Crops) -> Tensor:
    """Targets of our network: the unit flows."""
    return crops.flow


@torch.no_grad()
def make_lesson(draw: Draw, tissues: Tissues, n: int, membranes: int, side: int, targets: Targets = flows) -> Lesson:
    """Draw a batch of `n` crops of `side` working pixels with `membranes` membrane stains; `targets` makes the maps that the network should give."""
    crops = crop(draw, tissues, n, side)
    stains, counts = paint(draw, Scene(crops.labels, crops.nuclei), membranes)
    stains = change_look(draw, stains).contiguous(memory_format=torch.channels_last)
    shown = seen(crops, stains)
    return Lesson(stains, rna_images(draw, counts), targets(crops) * shown[:, None], shown, torch.ones_like(shown))


def crop(draw: Draw, tissues: Tissues, n: int, side: int) -> Crops:
    """Crops at random places of random tissues, turned (half of them by any angle, with a zoom up to 1.35) and mirrored."""
    whole, device = tissues.side, draw.device
    free = draw.chance(0.5, n)
    zoom = torch.where(free, draw.uniform(1.0, 1.35, n), 1.0)
    # A crop turned by any angle fits into the tissue only when it is enlarged.
    angle = torch.where(free & (zoom > 1.13), draw.uniform(0, 2 * math.pi, n), draw.integers(0, 4, n) * (math.pi / 2))
    mirror = torch.where(draw.chance(0.5, n), -1.0, 1.0)[:, None, None]
    cos, sin = (torch.cos(angle) / zoom)[:, None, None], (torch.sin(angle) / zoom)[:, None, None]
    room = ((whole - 1) / 2 - (side - 1) / 2 * (cos.abs() + sin.abs())).clamp_min(0)
    centre_y, centre_x = ((whole - 1) / 2 + draw.uniform(-1, 1, n, 1, 1) * room for _ in range(2))
    offset = torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2
    down, right = offset[None, :, None], offset[None, None] * mirror
    y = (centre_y + cos * down + sin * right).round().long()
    x = (centre_x - sin * down + cos * right).round().long()
    inside = (y >= 0) & (y < whole) & (x >= 0) & (x < whole)
    place = y.clamp(0, whole - 1) * whole + x.clamp(0, whole - 1)
    chosen = draw.integers(0, len(tissues), n)[:, None, None]
    at = chosen * whole**2 + place
    labels = tissues.labels.flatten()[at].long() * inside
    nuclei = (tissues.nuclei.flatten()[at] > 0) & inside
    flow_y, flow_x = (tissues.flow.flatten()[2 * chosen * whole**2 + axis * whole**2 + place].float() / FLOW_STORED for axis in (0, 1))
    turn_cos, turn_sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    flow = torch.stack((turn_cos * flow_y - turn_sin * flow_x, (turn_sin * flow_y + turn_cos * flow_x) * mirror), 1)
    return Crops(labels, nuclei, flow * (labels > 0)[:, None])


def seen(crops: Crops, stains: Tensor) -> Tensor:
    """(B, S, S) bool: cells that a person could vouch for: their nucleus is visible, or a stain sets them off from the background.

    Transcripts alone make no cell: patches without a nucleus and without any stain are as often neuropil, processes or debris.
    """
    labels = crops.labels.flatten(1)
    n = len(labels)

    def per_cell(values: Tensor) -> Tensor:
        return torch.zeros(n, MAX_CELLS + 1, device=labels.device).scatter_add_(1, labels, values.flatten(1).float())

    area = per_cell(torch.ones_like(labels))
    nucleus_shown = stains[:, 0].abs().amax((1, 2)) > 0
    shown = per_cell(crops.nuclei & nucleus_shown[:, None, None]) >= SEEN_NUCLEUS_PX
    has_background = area[:, :1] > 0.03 * labels.shape[1]
    for stain in stains[:, 1:].unbind(1):
        mean = per_cell(stain) / area.clamp_min(1)
        dark = torch.quantile(stain[:, ::8, ::8].flatten(1).float(), 0.1, dim=1)[:, None]
        shown |= mean - torch.where(has_background, mean[:, :1], dark) > SEEN_CONTRAST
    shown[:, 0] = False
    return shown.gather(1, labels).reshape(crops.labels.shape)


def change_look(draw: Draw, stains: Tensor) -> Tensor:
    """Brightness, contrast, gamma, clipping, blur, rectangular holes and dropout, for each stain on its own."""
    n, channels, side, _ = stains.shape
    shape = (n, channels, 1, 1)
    chosen = draw.chance(0.4, *shape)
    stains = stains * (1 + chosen * draw.uniform(-0.4, 0.5, *shape)) + chosen * draw.uniform(-0.12, 0.12, *shape)
    gamma = torch.where(draw.chance(0.2, *shape), draw.log_uniform(0.6, 1.6, *shape), 1.0)
    stains = torch.where(gamma != 1, stains.clamp_min(0) ** gamma, stains)
    stains = torch.where(draw.chance(0.15, *shape), stains.clamp(0, 1), stains)
    stains = torch.where(draw.chance(0.12, *shape), blur(stains, draw.uniform(0.5, 2.2, n, channels)), stains)
    stains = _holes(draw, _holes(draw, stains))
    kept = ~draw.chance(MEMBRANE_DROPOUT, *shape)
    kept[:, :1] = ~draw.chance(NUCLEUS_DROPOUT, n, 1, 1, 1)
    return stains * kept


def _holes(draw: Draw, stains: Tensor) -> Tensor:
    """Set a rectangle to 0 in a tenth of the stains, rarely in the nucleus stain."""
    n, channels, side, _ = stains.shape
    shape = (n, channels, 1, 1)
    height, width = draw.uniform(30, 220, *shape), draw.uniform(30, 220, *shape)
    top, left = draw.uniform(-60, side, *shape), draw.uniform(-60, side, *shape)
    place = torch.arange(side, device=stains.device)
    down, right = place[:, None], place[None]
    hit = draw.chance(0.1, *shape) & (down >= top) & (down < top + height) & (right >= left) & (right < left + width)
    hit[:, 0] &= draw.chance(0.4, n, 1, 1)
    return stains.masked_fill(hit, 0)


def rna_images(draw: Draw, counts: Tensor) -> Tensor:
    """(B, 1, S, S): each picture in one of two forms (`network.rna_image.FORMS`), with some play in width and strength, a few without any transcript."""
    n = len(counts)
    images = torch.stack([rna_image(counts, form, draw.uniform(0.75, 1.3, n)) for form in _RNA_FORMS])
    image = torch.where(draw.chance(0.5, n, 1, 1, 1), images[0], images[1])
    return image * draw.log_uniform(0.7, 1.4, n, 1, 1, 1) * ~draw.chance(RNA_DROPOUT, n, 1, 1, 1)


def rna_image(counts: Tensor, form: str, stretch: Tensor | float = 1.0) -> Tensor:
    """(B, 1, S, S): as `network.rna_image.rna_image`, in batches on the device; `stretch`, a number or (B,), is a factor on the Gaussian's width."""
    how, n = FORMS[form], len(counts)
    sigma = (how.sigma * torch.as_tensor(stretch, device=counts.device)).expand(n)
    radius = int(4 * float(sigma.max()) + 0.5)
    before = how.max_filter // 2
    images = F.max_pool2d(reflected(counts[:, None].float(), before, how.max_filter - 1 - before), how.max_filter, 1)
    offset = torch.arange(-radius, radius + 1, device=counts.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    images = F.conv2d(reflected(images, radius, radius).transpose(0, 1), kernel[:, None, :, None], groups=n)
    return how.gain * F.conv2d(images, kernel[:, None, None], groups=n).transpose(0, 1)
