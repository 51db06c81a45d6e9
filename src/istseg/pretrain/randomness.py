"""Random numbers and smooth random pictures on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_BROAD_PX = 56


class Draw:
    """Draws of one seeded generator on one device; the same seed and device give the same pictures."""

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def unit(self, *shape: int) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * self.unit(*shape)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.exp(self.uniform(math.log(low), math.log(high), *shape))

    def chance(self, probability: float | Tensor, *shape: int) -> Tensor:
        """bool, True with a probability."""
        return self.unit(*shape) < probability

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 in [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def choice(self, weights: tuple[float, ...], n: int) -> Tensor:
        """(n,) int64 index, drawn with the weights."""
        return torch.multinomial(torch.tensor(weights, device=self.device), n, replacement=True, generator=self.generator)

    def poisson(self, rate: Tensor) -> Tensor:
        return torch.poisson(rate, generator=self.generator)

    def field(self, n: int, side: int, grain_px: float) -> Tensor:
        """(n, side, side) smooth Gaussian noise of unit variance whose correlation length is about `grain_px`."""
        if grain_px >= _BROAD_PX and side % 8 == 0:
            # A broad field is made small and enlarged: the same picture for a 64th of the work.
            image = F.interpolate(self.field(n, side // 8, grain_px / 8)[:, None], scale_factor=8, mode="bilinear", align_corners=False)[:, 0]
            return _unit_variance(image)
        nodes = max(3, math.ceil(side / grain_px) + 2)
        image = F.interpolate(self.normal(n, 1, nodes, nodes), size=(int(nodes * grain_px),) * 2, mode="bicubic", align_corners=False)[:, 0]
        start = int(grain_px / 2)
        return _unit_variance(image[:, start : start + side, start : start + side])


def per_image(values: Tensor) -> Tensor:
    """(B,) → (B, 1, 1), to be multiplied with pictures."""
    return values[:, None, None]


def blur(images: Tensor, sigma_px: float | Tensor) -> Tensor:
    """Gaussian blur of (B, C, H, W), reflected at the borders; `sigma_px` a number, (B,) or (B, C)."""
    batch, channels, height, width = images.shape
    sigma = torch.as_tensor(sigma_px, device=images.device, dtype=torch.float32)
    if sigma.ndim == 1:
        sigma = sigma[:, None]
    sigma = sigma.expand(batch, channels).reshape(-1, 1)
    radius = max(1, math.ceil(3 * float(sigma.max())))
    offset = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp_min(0.05)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.dtype)
    folded = F.pad(images.reshape(1, batch * channels, height, width), (radius,) * 4, mode="reflect")
    folded = F.conv2d(folded, kernel[:, None, :, None], groups=batch * channels)
    return F.conv2d(folded, kernel[:, None, None, :], groups=batch * channels).reshape(images.shape)


def haze(images: Tensor, sigma_px: float | Tensor) -> Tensor:
    """Very wide blur of (B, C, H, W), made at an eighth of the resolution."""
    small = blur(F.avg_pool2d(images, 8), torch.as_tensor(sigma_px, device=images.device) / 8)
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)


def _unit_variance(images: Tensor) -> Tensor:
    return images / images.std((1, 2), keepdim=True).clamp_min(1e-6)
