"""What the backbones on tokens (`swin`, `mamba`) share: a U of four levels on patches of 4 × 4 pixels.

The arrangement is that of Swin-UNet (Cao et al. 2022) and VM-UNet (Ruan et al. 2024). Tokens are kept as (B, h, w, width). The sum that the blocks add to stays
float32 under autocast: it runs through up to 30 blocks, and bfloat16 has 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 4
WIDTHS = (96, 192, 384, 768)


class PatchEmbedding(nn.Module):
    """(B, c_in, H, W) → (B, H / 4, W / 4, width)."""

    def __init__(self, c_in: int, width: int):
        super().__init__()
        self.project = nn.Conv2d(c_in, width, PATCH, PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.project(x).permute(0, 2, 3, 1).float())


class PatchMerging(nn.Module):
    """(B, h, w, width) → (B, ⌈h / 2⌉, ⌈w / 2⌉, 2 · width); an odd side gets a row of zeros first."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).transpose(2, 3).flatten(3)
        return self.reduce(self.norm(x)).float()


class PatchExpanding(nn.Module):
    """(B, h, w, width) → (B, factor · h, factor · w, out)."""

    def __init__(self, width: int, out: int, factor: int):
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(width, factor**2 * out, bias=False)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x).unflatten(3, (self.factor, self.factor, -1)).transpose(2, 3)
        return self.norm(x.flatten(3, 4).flatten(1, 2))


class StochasticDepth(nn.Module):
    """In training, drops what a residual block adds for whole samples, and scales up the others (Huang et al. 2016).

    Drawn from torch's generator of the CPU on every device, so that one seed gives the same draws.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = (torch.rand(len(x)) >= self.rate).to(x) / (1 - self.rate)
        return x * kept.view(-1, *[1] * (x.ndim - 1))


class TokenUNet(nn.Module):
    """A U of stages on tokens: (B, c_in, H, W) with H, W multiples of 4 → (B, out, H, W).

    A level's skip is what its encoder's blocks give, before merging.

    Parameters
    ----------
    encoder
        Stages of the three upper levels, upper first; a stage maps (B, h, w, width) to itself, any h and w.
    middle
        Stage of the lowest level.
    fuse
        (upsampled, skip) → tokens, of the three upper levels, lower first.
    decoder
        As `encoder`, lower first.
    top
        What follows the last stage.
    final
        Last expansion, to single pixels.
    head
        Maps its channels to those of the output.
    """

    def __init__(
        self,
        c_in: int,
        encoder: Sequence[nn.Module],
        middle: nn.Module,
        fuse: Sequence[nn.Module],
        decoder: Sequence[nn.Module],
        top: nn.Module,
        final: PatchExpanding,
        head: nn.Module,
    ):
        super().__init__()
        upper = WIDTHS[:-1]
        self.embed = PatchEmbedding(c_in, WIDTHS[0])
        self.encoder = nn.ModuleList(encoder)
        self.merge = nn.ModuleList(PatchMerging(width) for width in upper)
        self.middle = middle
        self.expand = nn.ModuleList(PatchExpanding(2 * width, width, 2) for width in reversed(upper))
        self.fuse = nn.ModuleList(fuse)
        self.decoder = nn.ModuleList(decoder)
        self.top = top
        self.final = final
        self.head = head
        self.apply(_start)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        skips = []
        for stage, merge in zip(self.encoder, self.merge, strict=True):
            skips.append(stage(x))
            x = merge(skips[-1])
        x = self.middle(x)
        for expand, fuse, stage, skip in zip(self.expand, self.fuse, self.decoder, reversed(skips), strict=True):
            height, width = skip.shape[1:3]
            x = stage(fuse(expand(x)[:, :height, :width], skip))
        return self.head(self.final(self.top(x)).permute(0, 3, 1, 2))


def depth_rates(depths: Sequence[int], last: float) -> list[list[float]]:
    """Rates of stochastic depth per stage and block, rising linearly from 0 to `last` over all blocks."""
    rates = iter(torch.linspace(0, last, sum(depths)).tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
