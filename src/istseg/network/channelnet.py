"""The stain encoder: any number of stains → 3 maps, whatever their order.

It is InstanSeg's channel-invariant net (Goldsborough et al. 2024) in the form that the RNA2seg paper uses [RNA2seg network and loss]: stains are
folded into the batch, and after each block every stain also sees the maximum over all stains. Names of the parameters are those of the published package.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (8, 16, 32)


def conv_relu(c_in: int, c_out: int, kernel: int = 3, relu: bool = True) -> nn.Sequential:
    """Convolution that keeps the size, with or without ReLU; index 0 holds the weights."""
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def upsample(x: Tensor) -> Tensor:
    """Nearest neighbour, twice the size."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class StainBlock(nn.Module):
    """Two residual units on every stain alone, then exchange between the stains by their maximum.

    Parameters
    ----------
    skip
        Channels of the map of the encoder that is added; None in the encoder.
    mix
        False in the last block, which returns the maximum over the stains. Its `reduce_block` is unused but belongs to the published key set.
    """

    def __init__(self, c_in: int, c_out: int, skip: int | None = None, mix: bool = True):
        super().__init__()
        self.conv0 = conv_relu(c_in, c_out, 1)
        if skip is not None:
            self.conv_skip = conv_relu(skip, c_out, 1)
        self.conv1 = conv_relu(c_in, c_out)
        self.conv2 = conv_relu(c_out, c_out)
        self.conv3 = conv_relu(c_out, c_out)
        self.conv4 = conv_relu(c_out, c_out)
        self.reduce_block = conv_relu(2 * c_out, c_out)
        self.mix = mix

    def forward(self, x: Tensor, batch: int, skip: Tensor | None = None) -> Tensor:
        """(batch · stains, c_in, H, W) → (batch · stains, c_out, H, W), or (batch, c_out, H, W) in the last block."""
        short = self.conv0(x)
        x = self.conv1(x)
        if skip is not None:
            x = x + self.conv_skip(skip)
        x = short + self.conv2(x)
        x = x + self.conv4(self.conv3(x))
        per_stain = x.unflatten(0, (batch, -1))
        top = per_stain.amax(1)
        if not self.mix:
            return top
        everywhere = top[:, None].expand_as(per_stain)
        return self.reduce_block(torch.cat((everywhere, per_stain), 2).flatten(0, 1))


class ChannelNet(nn.Module):
    """(B, C, H, W) with any C ≥ 1, H and W multiples of 4 → (B, 3, H, W); 88,611 parameters."""

    def __init__(self, out: int = 3, widths: tuple[int, int, int] = WIDTHS):
        super().__init__()
        a, b, c = widths
        self.conv_0 = StainBlock(1, a)
        self.down_1 = StainBlock(a, b)
        self.down_2 = StainBlock(b, c)
        self.upcat_2 = StainBlock(c, b, skip=b)
        self.upcat_1 = StainBlock(b, a, skip=a, mix=False)
        self.final_conv = conv_relu(a, out, 1, relu=False)

    def forward(self, stains: Tensor) -> Tensor:
        batch = stains.shape[0]
        full = self.conv_0(stains.flatten(0, 1)[:, None], batch)
        half = self.down_1(F.max_pool2d(full, 2), batch)
        quarter = self.down_2(F.max_pool2d(half, 2), batch)
        half = self.upcat_2(upsample(quarter), batch, half)
        return self.final_conv(self.upcat_1(upsample(half), batch, full))
