"""Backbone `swin`: Swin-UNet (Cao et al. 2022), attention in shifted windows of tokens [paper: RNA2seg network and loss].

Patch 4, embedding 96, depths 2-2-6-2, heads 3-6-12-24, window 8, as in the paper; the decoder mirrors the encoder's depths, as in the publication. That makes
41,394,564 parameters, 41,483,175 with the stain encoder: the paper's 41.5 M. Differs from the publication in the window (8, not 7) and in taking any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from istseg.network.tokens import PATCH, WIDTHS, PatchExpanding, StochasticDepth, TokenUNet, depth_rates

DEPTHS = (2, 2, 6, 2)
HEADS = (3, 6, 12, 24)
WINDOW = 8
"""Side of an attention window, in tokens."""
MLP_RATIO = 4
DEPTH_RATE = 0.1
"""Stochastic depth of the last encoder block."""


@dataclass(frozen=True)
class Windows:
    """How a grid of tokens is cut into windows.

    Attributes
    ----------
    shift
        (y, x) by which the grid is rolled up and left before it is cut.
    apart
        (n windows, 64, 64) bool: pairs of tokens that must not see each other, because only rolling or padding brought them together; None: no such pair.
    """

    shift: tuple[int, int]
    apart: Tensor | None

    @classmethod
    def of(cls, size: tuple[int, int], shifted: bool, device: torch.device) -> Windows:
        """Windows of a grid of `size` (h, w), padded below and on the right to whole windows."""
        sides = [-(-side // WINDOW) * WINDOW for side in size]
        shift = tuple(WINDOW // 2 if shifted and side > WINDOW else 0 for side in sides)
        if not any(shift) and tuple(sides) == tuple(size):
            return cls(shift, None)
        y, x = (_parts(*axis, device) for axis in zip(size, sides, shift, strict=True))
        parts = _cut((3 * y[:, None] + x)[None, ..., None])[..., 0]
        return cls(shift, parts[:, :, None] != parts[:, None])


def _parts(size: int, side: int, shift: int, device: torch.device) -> Tensor:
    """Part of each row of the rolled grid: 0 inside, 1 rolled in from the other end, 2 padding."""
    at = (torch.arange(side, device=device) + shift) % side
    return torch.where(at >= size, 2, (at < shift).long())


class WindowAttention(nn.Module):
    """Self-attention of the tokens of each window, with a learned bias per relative position."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.position_bias = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 2, heads).normal_(std=0.02))
        at = torch.stack(torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")).flatten(1)
        y, x = at[:, :, None] - at[:, None] + WINDOW - 1
        self.register_buffer("relative", y * (2 * WINDOW - 1) + x, persistent=False)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """(B, h, w, width) with whole windows → same."""
        down, right = windows.shift
        rolled = torch.roll(x, (-down, -right), (1, 2))
        tokens = _cut(rolled)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        with _repeatable(x):
            seen = F.scaled_dot_product_attention(q, k, v, self._bias(windows, len(x)).to(q.dtype))
        out = self.project(seen.transpose(1, 2).flatten(2))
        return torch.roll(_join(out, x.shape), (down, right), (1, 2))

    def _bias(self, windows: Windows, batch: int) -> Tensor:
        """(1 or B · n windows, heads, 64, 64)."""
        bias = self.position_bias[self.relative].permute(2, 0, 1)[None]
        if windows.apart is None:
            return bias
        return bias.masked_fill(windows.apart[:, None], -torch.inf).repeat(batch, 1, 1, 1)


def _repeatable(x: Tensor):
    """The fused kernels of CUDA add up gradients in random order."""
    return sdpa_kernel(SDPBackend.MATH) if x.is_cuda and torch.is_grad_enabled() else nullcontext()


def _cut(x: Tensor) -> Tensor:
    """(B, h, w, c) → (B · n windows, 64, c)."""
    x = x.unflatten(1, (-1, WINDOW)).unflatten(3, (-1, WINDOW)).transpose(2, 3)
    return x.flatten(3, 4).flatten(0, 2)


def _join(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of `_cut`."""
    batch, height, width, _ = shape
    x = x.view(batch, height // WINDOW, width // WINDOW, WINDOW, WINDOW, -1)
    return x.transpose(2, 3).reshape(shape)


class SwinBlock(nn.Module):
    """Window attention and two linear layers per token, each added to what came in."""

    def __init__(self, width: int, heads: int, rate: float):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))
        self.drop = StochasticDepth(rate)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        x = x + self.drop(self.attention(self.norm_attention(x), windows))
        return x + self.drop(self.mlp(self.norm_mlp(x)))


class SwinStage(nn.Module):
    """Blocks of one level, every second one with shifted windows: (B, h, w, width) → same, any h and w."""

    def __init__(self, width: int, heads: int, rates: Sequence[float]):
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(width, heads, rate) for rate in rates)

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[1:3])
        height, width = size
        windows = [Windows.of(size, shifted, x.device) for shifted in (False, True)]
        x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        for i, block in enumerate(self.blocks):
            x = block(x, windows[i % 2])
        return x[:, :height, :width]


class Concatenate(nn.Module):
    """Joins upsampled tokens and skip, and maps them linearly to the width of one."""

    def __init__(self, width: int):
        super().__init__()
        self.reduce = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.reduce(torch.cat((x, skip), 3)).float()


class SwinUNet(TokenUNet):
    """(B, c_in, H, W) with H, W multiples of 4 → (B, out, H, W)."""

    def __init__(self, c_in: int = 4, out: int = 3):
        rates = depth_rates(DEPTHS, DEPTH_RATE)

        def stage(level: int) -> SwinStage:
            return SwinStage(WIDTHS[level], HEADS[level], rates[level])

        super().__init__(
            c_in,
            encoder=[stage(level) for level in (0, 1, 2)],
            middle=nn.Sequential(stage(3), nn.LayerNorm(WIDTHS[-1])),
            fuse=[Concatenate(width) for width in reversed(WIDTHS[:-1])],
            decoder=[stage(level) for level in (2, 1, 0)],
            top=nn.LayerNorm(WIDTHS[0]),
            final=PatchExpanding(WIDTHS[0], WIDTHS[0], PATCH),
            head=nn.Conv2d(WIDTHS[0], out, 1, bias=False),
        )
