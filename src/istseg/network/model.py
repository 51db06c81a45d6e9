"""The network of the RNA2seg paper: stain encoder + RNA image → backbone → flows and cell logit [paper: RNA2seg network and loss]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from istseg.network.channelnet import ChannelNet
from istseg.network.unet import UNet

FLOW_SCALE = 5.0
"""The network gives flows times this [paper: RNA2seg network and loss]."""

BACKBONES: dict[str, Callable[[int], nn.Module]] = {"cnn": UNet}
"""Backbone by name: channels of its input → module."""


class Rna2Seg(nn.Module):
    """The network: stains and RNA image → flows and cell logit.

    With the backbone `cnn` and the RNA input `density` the state dict has the 379 tensors of the published package, keys `model.*`, 6,690,104 parameters.

    Parameters
    ----------
    backbone
        Key of `BACKBONES`.
    """

    def __init__(self, backbone: str = "cnn"):
        super().__init__()
        self.model = BACKBONES[backbone](4)
        self.model.AdaptorNet = ChannelNet()

    def forward(self, stains: Tensor, rna: Tensor) -> Tensor:
        """Predict.

        Parameters
        ----------
        stains
            (B, 1 + K, H, W), nucleus stain first, then K ≥ 0 membrane stains in any order, normalised; H and W multiples of 8.
        rna
            (B, 1, H, W) RNA image (`network.rna_image`).

        Returns
        -------
        (B, 3, H, W) float32: flow y × 5, flow x × 5, cell logit.
        """
        encoded = self.model.AdaptorNet(stains)
        return self.model(torch.cat((encoded, rna.to(encoded.dtype)), 1)).float()
