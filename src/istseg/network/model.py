"""The network of the RNA2seg paper: stain encoder + RNA image → backbone → flows and cell logit [paper: RNA2seg network and loss]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from istseg.network.channelnet import ChannelNet
from istseg.network.gene_image import GeneImage
from istseg.network.mamba import MambaUNet
from istseg.network.rna_image import FORMS
from istseg.network.swin import SwinUNet
from istseg.network.unet import UNet

FLOW_SCALE = 5.0
"""The network gives flows times this [paper: RNA2seg network and loss]."""

BACKBONES: dict[str, Callable[[int], nn.Module]] = {"cnn": UNet, "swin": SwinUNet, "mamba": MambaUNet}
"""Backbone by name: channels of its input → module."""

RNA_INPUTS = ("density", "coexpression", "learned")
"""What the network sees of the transcripts: one channel of their density, or three channels in the colours of their genes, which are given by the genes'
spatial co-expression (`network.coexpression`) or learnt."""


class Rna2Seg(nn.Module):
    """The network: stains and RNA image → flows and cell logit.

    With the backbone `cnn` and the RNA input `density` the state dict has the 379 tensors of the published package, keys `model.*`, 6,690,104 parameters.

    Parameters
    ----------
    backbone
        Key of `BACKBONES`.
    rna_input
        One of `RNA_INPUTS`.
    n_genes, rna_form
        With gene colours: the number of genes and how they are drawn (key of `network.rna_image.FORMS`).
    """

    flow_scale = FLOW_SCALE

    def __init__(self, backbone: str = "cnn", rna_input: str = "density", n_genes: int = 0, rna_form: str = "working"):
        super().__init__()
        self.gene_image = None if rna_input == "density" else GeneImage(n_genes, FORMS[rna_form], rna_input == "learned")
        self.model = BACKBONES[backbone](4 if self.gene_image is None else 6)
        self.model.AdaptorNet = ChannelNet()

    def forward(self, stains: Tensor, rna: Tensor) -> Tensor:
        """Predict.

        Parameters
        ----------
        stains
            (B, 1 + K, H, W), nucleus stain first, then K ≥ 0 membrane stains in any order, normalised; H and W multiples of 8.
        rna
            (B, 1, H, W) RNA image (`network.rna_image`); with gene colours a gene map (`artifacts.genes`).

        Returns
        -------
        (B, 3, H, W) float32: flow y × 5, flow x × 5, cell logit.
        """
        encoded = self.model.AdaptorNet(stains)
        if self.gene_image is not None:
            rna = self.gene_image(rna)
        return self.model(torch.cat((encoded, rna.to(encoded.dtype)), 1)).float()
