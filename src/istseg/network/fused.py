"""The network with backbone `cnn` rearranged for inference on a CPU: same function, fewer passes over memory.

On a CPU the convolutions take a third of the time of `Rna2Seg`; the rest goes to reading and writing maps for batch norm, ReLU and sums. Here

- a batch norm behind a convolution is folded into its weights; before one, relu(a·x + b) = |a| · relu(±x + b/|a|), and |a| goes into the convolution's weights,
- ReLU and sums are done by oneDNN as it writes the convolution's output,
- the convolution of (maximum over the stains, stain) is the sum of two, of which that of the maximum is done once,
- maps of 8 channels at full size are computed as 32 channels at half the size (each 2 × 2 block of pixels is one), for which processors have matrix units.

Results differ from `Rna2Seg` by rounding. Windows are computed one by one, so that they do not depend on the batch.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istseg.network.channelnet import StainBlock, upsample
from istseg.network.model import Rna2Seg
from istseg.network.unet import Down, UNet, Up

_LEAST_SCALE = 1e-6
"""Scales of batch norm are not taken for smaller, so that dividing by them stays possible."""
_PHASES = [(i, j) for i in range(2) for j in range(2)]


def fused(model: nn.Module, precision: torch.dtype) -> FusedRna2Seg | None:
    """The rearranged network on the CPU; None for another network or backbone, or where torch has no oneDNN or oneDNN cannot compute in the precision."""
    if not isinstance(model, Rna2Seg) or type(model.model) is not UNet or not torch.backends.mkldnn.is_available():
        return None
    if precision == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return FusedRna2Seg(model, precision)


class FusedRna2Seg:
    """See the module.

    Parameters
    ----------
    model
        In evaluation mode.
    precision
        Of the arithmetic; sums inside a convolution are float32.
    """

    def __init__(self, model: Rna2Seg, precision: torch.dtype):
        self._precision = precision
        with torch.no_grad():
            net = model.model
            stains = net.AdaptorNet
            self._gene_image = model.gene_image
            make = partial(_Conv, precision=precision)
            self._full = _Stains(stains.conv_0, make, blocks="from pixels")
            self._half = _Stains(stains.down_1, make)
            self._quarter = _Stains(stains.down_2, make)
            self._up_half = _Stains(stains.upcat_2, make)
            self._up_full = _Stains(stains.upcat_1, make, blocks="from halves")
            last = stains.final_conv[0]
            # `pixel_shuffle` wants the phases of a channel side by side.
            weight = _blocks_1x1(last.weight).unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)
            self._last = make(weight, last.bias.repeat_interleave(4))
            self._downs = [_Down(block, make) for block in net.downsample.down.values()]
            self._ups = [_Up(block, make) for block in net.upsample.up.values()]
            self._output = _Activation(net.output[0], make)
            self._head = make(net.output[2].weight * self._output.scale[:, None, None], net.output[2].bias)

    @torch.inference_mode()
    def __call__(self, stains: Tensor, rna: Tensor) -> Tensor:
        """As `Rna2Seg.forward`."""
        return torch.cat([self._window(s, r) for s, r in zip(stains, rna, strict=True)])

    def _window(self, stains: Tensor, rna: Tensor) -> Tensor:
        """(C, H, W), (1, H, W) → (1, 3, H, W) float32."""
        blocks = [_map(F.pixel_unshuffle(stain[None, None], 2), self._precision) for stain in stains]
        full = self._full.mixed([self._full(x) for x in blocks])
        half = self._half.mixed([self._half(_pooled_blocks(x)) for x in full])
        quarter = self._quarter.mixed([self._quarter(F.max_pool2d(x, 2)) for x in half])
        half = self._up_half.mixed([self._up_half(upsample(x), skip) for x, skip in zip(quarter, half, strict=True)])
        top = _maximum([self._up_full(x, skip) for x, skip in zip(half, full, strict=True)])
        encoded = F.pixel_shuffle(self._last(top), 2)
        rna = rna[None] if self._gene_image is None else self._gene_image(rna[None])
        return self._unet(_map(torch.cat((encoded, rna.to(encoded.dtype)), 1), self._precision))

    def _unet(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for block in self._downs:
            x = block(F.max_pool2d(maps[-1], 2) if maps else x)
            maps.append(x)
        style = maps[-1].float().mean((2, 3))[0]
        style = style / style.square().sum().sqrt()
        for level, block in reversed(list(enumerate(self._ups))):
            x = block(x, maps[level], style, deepest=level == len(maps) - 1)
        return self._head(self._output(x)).float()


class _Conv:
    """Convolution that keeps the size, stride 1, with what oneDNN can do on its output."""

    def __init__(self, weight: Tensor, bias: Tensor, precision: torch.dtype, groups: int = 1):
        self.weight = weight.to(precision).contiguous(memory_format=torch.channels_last)
        self.bias = bias.float()
        self._how = [weight.shape[-1] // 2] * 2, [1, 1], [1, 1], groups

    def __call__(self, x: Tensor, relu: bool = False, shift: Tensor | None = None) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self._bias(shift), *self._how, "relu" if relu else "none", [], "")

    def plus(self, x: Tensor, other: Tensor, relu: bool = False, shift: Tensor | None = None) -> Tensor:
        """Conv(x) + other, then ReLU."""
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self.weight, self._bias(shift), *self._how, "add", 1.0, "relu" if relu else None, [], ""
        )

    def _bias(self, shift: Tensor | None) -> Tensor:
        return (self.bias if shift is None else self.bias + shift).to(self.weight.dtype)


class _Activation:
    """relu(±x + shift) of batch norm and ReLU; the next convolution's weights must be multiplied by `scale` (channels of its input)."""

    def __init__(self, norm: nn.BatchNorm2d, make):
        a, b = _scale_and_shift(norm)
        self.sign, self.scale = torch.where(a < 0, -1.0, 1.0), a.abs()
        self.shift = b / self.scale
        self._conv = make(self.sign[:, None, None, None], self.shift, groups=len(a))

    def __call__(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        return self._conv(x, relu=True, shift=None if style is None else self.sign * style)


class _Stains:
    """A `StainBlock` on the map of one stain; `mixed` is its exchange between the stains."""

    def __init__(self, block: StainBlock, make, blocks: str = ""):
        def conv(sequence: nn.Sequential, weight: Tensor | None = None) -> _Conv:
            weight = sequence[0].weight if weight is None else weight
            bias = sequence[0].bias
            if not blocks:
                return make(weight, bias)
            return make(weight if len(weight) != len(bias) else _blocks(weight), bias.repeat(4))

        doubled = _from_halves if blocks == "from halves" else None
        self._short, self._conv1 = (conv(c, doubled(c[0].weight) if doubled else None) for c in (block.conv0, block.conv1))
        self._skip = conv(block.conv_skip) if hasattr(block, "conv_skip") else None
        self._conv2, self._conv3, self._conv4 = conv(block.conv2), conv(block.conv3), conv(block.conv4)
        width = block.reduce_block[0].weight.shape[1] // 2
        reduce = block.reduce_block[0]
        self._reduce_top = conv(block.reduce_block, reduce.weight[:, :width])
        self._reduce_own = conv(block.reduce_block, reduce.weight[:, width:])
        self._reduce_own.bias = torch.zeros_like(self._reduce_own.bias)

    def __call__(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        short, x = self._short(x, relu=True), self._conv1(x, relu=True)
        if skip is not None:
            x = x + self._skip(skip, relu=True)
        x = short + self._conv2(x, relu=True)
        return x + self._conv4(self._conv3(x, relu=True), relu=True)

    def mixed(self, maps: list[Tensor]) -> list[Tensor]:
        top = self._reduce_top(_maximum(maps))
        return [self._reduce_own.plus(x, top, relu=True) for x in maps]


class _Down:
    def __init__(self, block: Down, make):
        c = block.conv
        self._project = _projection(block.proj, make)
        self._first, self._second = _Activation(c["conv_0"][0], make), _Activation(c["conv_2"][0], make)
        self._conv0 = _before_norm(c["conv_0"][2], self._first.scale, c["conv_1"][0], make)
        self._conv2 = _before_norm(c["conv_2"][2], self._second.scale, c["conv_3"][0], make)
        self._conv1, self._conv3 = (make(c[k][2].weight, c[k][2].bias) for k in ("conv_1", "conv_3"))

    def __call__(self, x: Tensor) -> Tensor:
        x = self._conv1.plus(self._conv0(self._first(x), relu=True), self._project(x))
        return self._conv3.plus(self._conv2(self._second(x), relu=True), x)


class _Up:
    """Styles enter as shifts of the biases; what is done to each pixel alone is done before the map is doubled."""

    def __init__(self, block: Up, make):
        c = block.conv
        styled = [c[f"conv_{i}"] for i in (1, 2, 3)]
        self._project = _projection(block.proj, make)
        self._first, self._second = _Activation(c["conv_0"][0], make), _Activation(styled[1].conv[0], make)
        norm1, norm3 = _Activation(styled[0].conv[0], make), styled[2].conv[0]
        self._sign = None if bool((norm1.sign > 0).all()) else norm1.sign[:, None, None]
        self._conv0 = make(
            c["conv_0"][2].weight * self._first.scale[:, None, None] * norm1.sign[:, None, None, None], c["conv_0"][2].bias * norm1.sign + norm1.shift
        )
        self._conv1 = make(styled[0].conv[2].weight * norm1.scale[:, None, None], styled[0].conv[2].bias)
        self._conv2 = _before_norm(styled[1].conv[2], self._second.scale, norm3, make)
        self._conv3 = make(styled[2].conv[2].weight, styled[2].conv[2].bias)
        self._style_scales = norm1.sign, torch.ones(()), _scale_and_shift(norm3)[0]
        self._styles = [s.full for s in styled]

    def __call__(self, x: Tensor, skip: Tensor, style: Tensor, deepest: bool) -> Tensor:
        shift1, shift2, shift3 = (F.linear(style, s.weight, s.bias) * a for s, a in zip(self._styles, self._style_scales, strict=True))
        double = (lambda y: y) if deepest else upsample
        skip = skip if self._sign is None else skip * self._sign.to(skip.dtype)
        y = self._conv0.plus(double(self._first(x)), skip, relu=True, shift=shift1)
        x = self._conv1.plus(y, double(self._project(x)))
        return self._conv3.plus(self._conv2(self._second(x, shift2), relu=True, shift=shift3), x)


def _map(x: Tensor, precision: torch.dtype) -> Tensor:
    return x.to(precision).contiguous(memory_format=torch.channels_last)


def _maximum(maps: list[Tensor]) -> Tensor:
    top = maps[0]
    for other in maps[1:]:
        top = torch.maximum(top, other)
    return top


def _pooled_blocks(x: Tensor) -> Tensor:
    """Maximum over the four pixels of each block."""
    a, b, c, d = x.chunk(4, 1)
    return torch.maximum(torch.maximum(a, b), torch.maximum(c, d)).contiguous(memory_format=torch.channels_last)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """a, b of a·x + b."""
    a = norm.weight / (norm.running_var + norm.eps).sqrt()
    a = torch.where(a.abs() < _LEAST_SCALE, _LEAST_SCALE, a)
    return a, norm.bias - a * norm.running_mean


def _projection(proj: nn.Sequential, make) -> _Conv:
    """Batch norm and 1 × 1 convolution without ReLU between."""
    a, b = _scale_and_shift(proj[0])
    weight = proj[1].weight
    return make(weight * a[:, None, None], proj[1].bias + weight[:, :, 0, 0] @ b)


def _before_norm(conv: nn.Conv2d, scale: Tensor, norm: nn.BatchNorm2d, make) -> _Conv:
    """Convolution of a map that is to be multiplied by `scale`, with the batch norm behind it."""
    a, b = _scale_and_shift(norm)
    return make(conv.weight * scale[:, None, None] * a[:, None, None, None], conv.bias * a + b)


def _blocks(weight: Tensor) -> Tensor:
    """Weights (o, i, k, k) at full size → (4 o, 4 i, ·, ·) on 2 × 2 blocks; channels phase by phase, phases row by row."""
    if weight.shape[-1] == 1:
        return _blocks_1x1(weight)
    o, i = weight.shape[:2]
    large = weight.new_zeros(4, o, 4, i, 3, 3)
    for to, (y, x) in enumerate(_PHASES):
        for dy in range(3):
            for dx in range(3):
                at_y, at_x = y + dy - 1, x + dx - 1
                large[to, :, (at_y % 2) * 2 + at_x % 2, :, at_y // 2 + 1, at_x // 2 + 1] = weight[:, :, dy, dx]
    return large.reshape(4 * o, 4 * i, 3, 3)


def _blocks_1x1(weight: Tensor) -> Tensor:
    return torch.block_diag(*[weight[:, :, 0, 0]] * 4)[:, :, None, None]


def _from_halves(weight: Tensor) -> Tensor:
    """Weights (o, i, k, k) on a map that was doubled by nearest neighbour → (4 o, i, ·, ·) on the map before, giving 2 × 2 blocks."""
    if weight.shape[-1] == 1:
        return weight.repeat(4, 1, 1, 1)
    o, i = weight.shape[:2]
    large = weight.new_zeros(4, o, i, 3, 3)
    for to, (y, x) in enumerate(_PHASES):
        for dy in range(3):
            for dx in range(3):
                large[to, :, :, (y + dy - 1) // 2 + 1, (x + dx - 1) // 2 + 1] += weight[:, :, dy, dx]
    return large.reshape(4 * o, i, 3, 3)
