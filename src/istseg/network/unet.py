"""Backbone `cnn`: a residual U-Net with a style vector, Cellpose's (Stringer et al. 2021) [paper: RNA2seg network and loss].

Names and shapes of the parameters are those of the published package, so that its weights load here and ours there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istseg.network.channelnet import upsample

WIDTHS = (32, 64, 128, 256)


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
    """(B, c_in, H, W) with H, W multiples of 8 → (B, out, H, W)."""

    def __init__(self, c_in: int = 4, out: int = 3):
        super().__init__()
        widths = (c_in, *WIDTHS)
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
