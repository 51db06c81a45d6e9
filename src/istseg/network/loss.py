"""Partial back-propagation: only the pixels P that curation vouches for teach [paper: equation 1; RNA2seg network and loss].

`L = 1/|P| · Σ_P (BCE(cell logit, cell) + MSE(flow output, 5 · flow))`, where the squared error of a pixel is the mean over its two components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from istseg.network.model import FLOW_SCALE


@dataclass(frozen=True)
class LossSums:
    """Sums over pixels that teach; divide by `pixels` for the loss.

    Attributes
    ----------
    flow, cell
        float32 scalars: summed squared flow error and summed cross entropy.
    pixels
        |P|, float32 scalar.
    """

    flow: Tensor
    cell: Tensor
    pixels: Tensor

    @property
    def loss(self) -> Tensor:
        """Mean over P; 0 (with zero gradients) where nothing may teach."""
        return (self.flow + self.cell) / self.pixels.clamp_min(1)


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], LossSums]
"""Output, what it should be beside the logit, cell, teach → sums, as `loss_sums`."""


def loss_sums(output: Tensor, flow: Tensor, cell: Tensor, teach: Tensor) -> LossSums:
    """Compare an output with its targets on the pixels that teach.

    Parameters
    ----------
    output
        (B, 3, H, W): 5 · flow y, 5 · flow x, cell logit.
    flow
        (B, 2, H, W) unit flows.
    cell, teach
        (B, H, W) bool: pixel of a cell; pixel of P.
    """
    output = output.float()
    squared = (output[:, :2] - FLOW_SCALE * flow).square().mean(1)
    entropy = F.binary_cross_entropy_with_logits(output[:, 2], cell.float(), reduction="none")
    # where, not a product: an infinite loss outside P times 0 would be NaN.
    zero = torch.zeros((), device=output.device)
    return LossSums(torch.where(teach, squared, zero).sum(), torch.where(teach, entropy, zero).sum(), teach.sum().float())
