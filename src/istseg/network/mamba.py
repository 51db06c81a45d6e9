"""Backbone `mamba`: VM-UNet (Ruan et al. 2024), a two-dimensional selective scan in place of attention [paper: RNA2seg network and loss].

Embedding 96, state 16, encoder depths 2-2-9-2 and decoder depths 2-9-2-2, the defaults of the publication's network, which the published package builds with 4
channels in and 3 out: 44,275,419 parameters, the paper's 44.2 M (cut, not rounded, and without the stain encoder, as its 6.6 M of the CNN); 44,364,030 with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istseg.network.scan import selective_scan
from istseg.network.tokens import PATCH, WIDTHS, PatchExpanding, StochasticDepth, TokenUNet, depth_rates

DEPTHS = (2, 2, 9, 2)
DECODER_DEPTHS = (2, 9, 2, 2)
"""Of the lowest level first."""
STATES = 16
DIRECTIONS = 4
STEP = (1e-3, 0.1)
"""Range of the step sizes at the start."""
DEPTH_RATE = 0.2
"""Stochastic depth of the last encoder block and of the first decoder block."""


class Scan2D(nn.Module):
    """Selective scan of a map along its rows and columns, both ways, gated: (B, h, w, width) → same."""

    def __init__(self, width: int):
        super().__init__()
        inner, self.rank = 2 * width, math.ceil(width / 16)
        self.split = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.parameters_of = nn.Parameter(_uniform(inner**-0.5, DIRECTIONS, inner, self.rank + 2 * STATES))
        self.step = nn.Parameter(_uniform(self.rank**-0.5, DIRECTIONS, self.rank, inner))
        low, high = map(math.log, STEP)
        steps = torch.exp(low + torch.rand(DIRECTIONS, inner) * (high - low))
        self.step_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))  # the softplus of it is `steps`
        self.log_decay = nn.Parameter(torch.arange(1.0, STATES + 1).log()[:, None].repeat(DIRECTIONS, 1, inner))
        self.through = nn.Parameter(torch.ones(DIRECTIONS, inner))
        self.norm = nn.LayerNorm(inner)
        self.join = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x, gate = self.split(x).chunk(2, 3)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        u = _unroll(x)
        step, b, c = (u @ self.parameters_of).split((self.rank, STATES, STATES), 3)
        step = F.softplus((step @ self.step).float() + self.step_bias[:, None])
        y = selective_scan(u, step, -self.log_decay.float().exp(), b, c) + u.float() * self.through[:, None]
        return self.join(self.norm(_roll_up(y, height, width)) * F.silu(gate))


def _uniform(bound: float, *shape: int) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound)


def _unroll(x: Tensor) -> Tensor:
    """(B, h, w, D) → (B, 4, h · w, D): by rows, by columns, and both from the end."""
    rows, columns = x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2)
    return torch.stack((rows, columns, rows.flip(1), columns.flip(1)), 1)


def _roll_up(y: Tensor, height: int, width: int) -> Tensor:
    """Sum over the directions, each put back in its place: (B, 4, h · w, D) → (B, h, w, D)."""
    rows, columns = y[:, :2].unbind(1)
    rows_back, columns_back = y[:, 2:].flip(2).unbind(1)
    return (rows + rows_back).unflatten(1, (height, width)) + (columns + columns_back).unflatten(1, (width, height)).transpose(1, 2)


class ScanBlock(nn.Module):
    """The block of VM-UNet: a normalised scan, added to what came in."""

    def __init__(self, width: int, rate: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scan = Scan2D(width)
        self.drop = StochasticDepth(rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.scan(self.norm(x)))


class Add(nn.Module):
    """Adds upsampled tokens and skip."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return x + skip


def _stage(width: int, rates: Sequence[float]) -> nn.Sequential:
    return nn.Sequential(*(ScanBlock(width, rate) for rate in rates))


class MambaUNet(TokenUNet):
    """(B, c_in, H, W) with H, W multiples of 4 → (B, out, H, W)."""

    def __init__(self, c_in: int = 4, out: int = 3):
        down = [_stage(*stage) for stage in zip(WIDTHS, depth_rates(DEPTHS, DEPTH_RATE), strict=True)]
        falling = [rates[::-1] for rates in depth_rates(DECODER_DEPTHS[::-1], DEPTH_RATE)][::-1]
        up = [_stage(*stage) for stage in zip(reversed(WIDTHS), falling, strict=True)]
        super().__init__(
            c_in,
            encoder=down[:-1],
            middle=nn.Sequential(down[-1], up[0]),
            fuse=[Add() for _ in up[1:]],
            decoder=up[1:],
            top=nn.Identity(),
            final=PatchExpanding(WIDTHS[0], WIDTHS[0] // PATCH, PATCH),
            head=nn.Conv2d(WIDTHS[0] // PATCH, out, 1),
        )
