"""The segmentation network of the RNA2seg paper: stain encoder, RNA image, residual U-Net with a style vector.

The U-Net is Cellpose's (Stringer et al. 2021). Names and shapes of the parameters are those of the published package, so that its weights load here and
ours there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istseg.network.channelnet import ChannelNet, upsample

WIDTHS = (4, 32, 64, 128, 256)
FLOW_SCALE = 5.0
"""The network gives flows times this [paper: RNA2seg network and loss]."""


def norm_conv(c_in: int, c_out: int, kernel: int = 3, relu: bool = True) -> nn.Sequential:
    """Batch norm, ReLU or not, convolution that keeps the size."""
    layers: list[nn.Module] = [nn.BatchNorm2d(c_in, eps=1e-5, momentum=0.05)]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2))


class Down(nn.Module):
    """Four convolutions in two residual units."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.ModuleDict({f"conv_{i}": norm_conv(c_out if i else c_in, c_out) for i in range(4)})
        self.proj = norm_conv(c_in, c_out, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        c = self.conv
        x = self.proj(x) + c["conv_1"](c["conv_0"](x))
        return x + c["conv_3"](c["conv_2"](x))


class Styled(nn.Module):
    """Adds a linear map of the style to every pixel, then batch norm, ReLU, convolution."""

    def __init__(self, channels: int, style: int):
        super().__init__()
        self.conv = norm_conv(channels, channels)
        self.full = nn.Linear(style, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        shift = self.full(style.to(self.full.weight.dtype)).to(x.dtype)
        return self.conv(x + shift[:, :, None, None])


class Up(nn.Module):
    """As `Down`, with the style, and with the map of the encoder added after the first convolution."""

    def __init__(self, c_in: int, c_out: int, style: int):
        super().__init__()
        self.conv = nn.ModuleDict({"conv_0": norm_conv(c_in, c_out)})
        for i in (1, 2, 3):
            self.conv[f"conv_{i}"] = Styled(c_out, style)
        self.proj = norm_conv(c_in, c_out, 1, relu=False)

    def forward(self, x: Tensor, skip: Tensor, style: Tensor) -> Tensor:
        c = self.conv
        x = self.proj(x) + c["conv_1"](c["conv_0"](x) + skip, style)
        return x + c["conv_3"](c["conv_2"](x, style), style)


class UNet(nn.Module):
    """(B, 4, H, W) with H, W multiples of 8 → (B, 3, H, W)."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, out: int = 3):
        super().__init__()
        depth = len(widths) - 1
        # Unused here; the published key set has them.
        self.diam_mean = nn.Parameter(torch.full((1,), 30.0), requires_grad=False)
        self.diam_labels = nn.Parameter(torch.full((1,), 30.0), requires_grad=False)
        self.downsample = nn.Module()
        self.downsample.down = nn.ModuleDict({f"res_down_{i}": Down(widths[i], widths[i + 1]) for i in range(depth)})
        self.upsample = nn.Module()
        ups = (*widths[1:], widths[-1])
        self.upsample.up = nn.ModuleDict({f"res_up_{i}": Up(ups[i + 1], ups[i], widths[-1]) for i in range(depth)})
        self.output = norm_conv(widths[1], out, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for block in self.downsample.down.values():
            x = block(F.max_pool2d(maps[-1], 2) if maps else x)
            maps.append(x)
        style = maps[-1].float().mean((2, 3))
        style = style / style.square().sum(1, keepdim=True).sqrt()
        for level, block in reversed(list(enumerate(self.upsample.up.values()))):
            deepest = level == len(maps) - 1
            x = block(x if deepest else upsample(x), maps[level], style)
        return self.output(x)


class Rna2Seg(nn.Module):
    """The network: stains and RNA image → flows and cell logit; 6,690,104 parameters [paper: RNA2seg network and loss].

    The state dict has the 379 tensors of the published package, keys `model.*`.
    """

    def __init__(self):
        super().__init__()
        self.model = UNet()
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
