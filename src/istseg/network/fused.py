"""The network with backbone `cnn` rearranged for inference: same function, fewer passes over memory.

The convolutions take a third of the time of `Rna2Seg`; the rest goes to reading and writing maps for batch norm, ReLU and sums. Here

- a batch norm behind a convolution is folded into its weights; before one, relu(a·x + b) = |a| · relu(±x + b/|a|), and |a| goes into the convolution's weights,
- ReLU and sums are done by oneDNN as it writes the convolution's output; on a GPU by cuDNN where it can, else in one pass (`network.kernels`),
- the convolution of (maximum over the stains, stain) is the sum of two, of which that of the maximum is done once,
- maps of 8 channels at full size are computed as 32 channels at half the size (each 2 × 2 block of pixels is one), for which processors have matrix units.

Results differ from `Rna2Seg` by rounding. On a CPU windows are computed one by one, so that they do not depend on the batch; on a GPU together, so they depend
on the number of windows in a batch, which is therefore always the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from istseg.network import kernels
from istseg.network.channelnet import StainBlock, upsample
from istseg.network.model import Rna2Seg
from istseg.network.unet import Down, UNet, Up

_LEAST_SCALE = 1e-6
"""Scales of batch norm are not taken for smaller, so that dividing by them stays possible."""
_PHASES = [(i, j) for i in range(2) for j in range(2)]


def fused(model: nn.Module, precision: torch.dtype) -> FusedRna2Seg | None:
    """The rearranged network where the model is; None for another network or backbone, or where the device cannot compute it in the precision: a CPU without
    oneDNN or without bfloat16, a GPU in float32 or in a bfloat16 that it does not have.
    """
    if not isinstance(model, Rna2Seg) or type(model.model) is not UNet:
        return None
    if next(model.parameters()).is_cuda:
        has_it = precision == torch.float16 or (precision == torch.bfloat16 and torch.cuda.is_bf16_supported(including_emulation=False))
        return FusedRna2Seg(model, precision) if has_it else None
    if not torch.backends.mkldnn.is_available() or (precision == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()):
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
            self._on_gpu = net.output[2].weight.is_cuda
            make = partial(_CudnnConv if self._on_gpu else _OneDnnConv, precision=precision)
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
        if self._on_gpu:
            return self._windows(stains, rna)
        return torch.cat([self._windows(s, r) for s, r in zip(stains.split(1), rna.split(1), strict=True)])

    def _windows(self, stains: Tensor, rna: Tensor) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) → (B, 3, H, W) float32."""
        blocks = [self._map(F.pixel_unshuffle(stain, 2)) for stain in stains.split(1, dim=1)]
        full = self._full.mixed([self._full(x) for x in blocks])
        half = self._half.mixed([self._half(_pooled_blocks(x)) for x in full])
        quarter = self._quarter.mixed([self._quarter(F.max_pool2d(x, 2)) for x in half])
        half = self._up_half.mixed([self._up_half(upsample(x), skip) for x, skip in zip(quarter, half, strict=True)])
        top = _maximum([self._up_full(x, skip) for x, skip in zip(half, full, strict=True)])
        encoded = F.pixel_shuffle(self._last(top), 2)
        rna = rna if self._gene_image is None else self._gene_image(rna)
        return self._unet(self._map(torch.cat((encoded, rna.to(encoded.dtype)), 1)))

    def _map(self, x: Tensor) -> Tensor:
        """In the precision, channels last; on a GPU with channels of zeros up to a multiple of those that are read at once."""
        missing = -x.shape[1] % kernels.GROUP if self._on_gpu else 0
        return F.pad(x.to(self._precision), (0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)

    def _unet(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for block in self._downs:
            x = block(F.max_pool2d(maps[-1], 2) if maps else x)
            maps.append(x)
        style = maps[-1].mean((2, 3), dtype=torch.float32)
        style = style / style.square().sum(1, keepdim=True).sqrt()
        for level, block in reversed(list(enumerate(self._ups))):
            x = block(x, maps[level], style, deepest=level == len(maps) - 1)
        return self._head(self._output(x)).float()


class _OneDnnConv:
    """Convolution that keeps the size, stride 1, of one window, with what oneDNN can do on its output."""

    def __init__(self, weight: Tensor, bias: Tensor, precision: torch.dtype, groups: int = 1):
        self.weight = weight.to(precision).contiguous(memory_format=torch.channels_last)
        self.bias = bias.float()
        self._how = [weight.shape[-1] // 2] * 2, [1, 1], [1, 1], groups

    def __call__(self, x: Tensor, relu: bool = False, shift: Tensor | None = None) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self._bias(shift), *self._how, "relu" if relu else "none", [], "")

    def plus(self, x: Tensor, other: Tensor, relu: bool = False, shift: Tensor | None = None, sign: Tensor | None = None) -> Tensor:
        """Conv(x) + sign · other, then ReLU; `other` may be of half the size."""
        other = other if sign is None else other * sign[:, None, None].to(other.dtype)
        other = other if other.shape[2] == x.shape[2] else upsample(other)
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self.weight, self._bias(shift), *self._how, "add", 1.0, "relu" if relu else None, [], ""
        )

    def _bias(self, shift: Tensor | None) -> Tensor:
        return (self.bias if shift is None else self.bias + shift[0]).to(self.weight.dtype)

    @classmethod
    def activation(cls, sign: Tensor, shift: Tensor, precision: torch.dtype) -> Callable[..., Tensor]:
        """(map, shift of the window or None, zoom) → relu(sign · x + shift), enlarged."""
        conv = cls(sign[:, None, None, None], shift, precision, groups=len(sign))

        def activate(x: Tensor, shift: Tensor | None = None, zoom: int = 1) -> Tensor:
            x = conv(x, relu=True, shift=shift)
            return x if zoom == 1 else upsample(x)

        return activate


class _CudnnConv:
    """Convolution that keeps the size, stride 1, of any number of windows; what is done to its output by cuDNN, or in one pass after it."""

    def __init__(self, weight: Tensor, bias: Tensor, precision: torch.dtype):
        missing = -weight.shape[1] % kernels.GROUP
        self.weight = F.pad(weight, (0, 0, 0, 0, 0, missing)).to(precision).contiguous(memory_format=torch.channels_last)
        self.bias = bias.float()
        self._ones = torch.ones_like(self.bias)
        self._padding = [weight.shape[-1] // 2] * 2

    def __call__(self, x: Tensor, relu: bool = False, shift: Tensor | None = None) -> Tensor:
        if not relu:
            return torch.conv2d(x, self.weight, self.bias.to(self.weight.dtype), padding=self._padding)
        if shift is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias.to(self.weight.dtype), [1, 1], self._padding, [1, 1], 1)
        return kernels.activate(self._bare(x), self._ones, self.bias + shift)

    def plus(self, x: Tensor, other: Tensor, relu: bool = False, shift: Tensor | None = None, sign: Tensor | None = None) -> Tensor:
        """As that of `_OneDnnConv`."""
        if relu and shift is None and sign is None and other.shape == (len(x), len(self.bias), *x.shape[2:]):
            return torch.cudnn_convolution_add_relu(x, self.weight, other, 1.0, self.bias.to(self.weight.dtype), [1, 1], self._padding, [1, 1], 1)
        return kernels.add(self._bare(x), other, self._ones if sign is None else sign, self.bias if shift is None else self.bias + shift, relu)

    def _bare(self, x: Tensor) -> Tensor:
        return torch.conv2d(x, self.weight, padding=self._padding)

    @staticmethod
    def activation(sign: Tensor, shift: Tensor, precision: torch.dtype) -> Callable[..., Tensor]:
        missing = -len(sign) % kernels.GROUP
        sign, own = (F.pad(v.float(), (0, missing)) for v in (sign, shift))

        def activate(x: Tensor, shift: Tensor | None = None, zoom: int = 1) -> Tensor:
            return kernels.activate(x, sign, own if shift is None else own + shift, zoom)

        return activate


class _Activation:
    """relu(±x + shift) of batch norm and ReLU; the next convolution's weights must be multiplied by `scale` (channels of its input)."""

    def __init__(self, norm: nn.BatchNorm2d, make):
        a, b = _scale_and_shift(norm)
        self.sign, self.scale = torch.where(a < 0, -1.0, 1.0), a.abs()
        self.shift = b / self.scale
        self._activate = make.func.activation(self.sign, self.shift, **make.keywords)

    def __call__(self, x: Tensor, style: Tensor | None = None, zoom: int = 1) -> Tensor:
        return self._activate(x, None if style is None else self.sign * style, zoom)


class _Stains:
    """A `StainBlock` on the map of one stain; `mixed` is its exchange between the stains."""

    def __init__(self, block: StainBlock, make, blocks: str = ""):
        def conv(sequence: nn.Sequential, weight: Tensor | None = None):
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
        self._sign = None if bool((norm1.sign > 0).all()) else norm1.sign
        self._conv0 = make(
            c["conv_0"][2].weight * self._first.scale[:, None, None] * norm1.sign[:, None, None, None], c["conv_0"][2].bias * norm1.sign + norm1.shift
        )
        self._conv1 = make(styled[0].conv[2].weight * norm1.scale[:, None, None], styled[0].conv[2].bias)
        self._conv2 = _before_norm(styled[1].conv[2], self._second.scale, norm3, make)
        self._conv3 = make(styled[2].conv[2].weight, styled[2].conv[2].bias)
        self._style_scales = norm1.sign, torch.ones_like(norm1.sign), _scale_and_shift(norm3)[0]
        self._styles = [s.full for s in styled]

    def __call__(self, x: Tensor, skip: Tensor, style: Tensor, deepest: bool) -> Tensor:
        shift1, shift2, shift3 = (F.linear(style, s.weight, s.bias) * a for s, a in zip(self._styles, self._style_scales, strict=True))
        y = self._conv0.plus(self._first(x, zoom=1 if deepest else 2), skip, relu=True, shift=shift1, sign=self._sign)
        x = self._conv1.plus(y, self._project(x))
        return self._conv3.plus(self._conv2(self._second(x, shift2), relu=True, shift=shift3), x)


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


def _projection(proj: nn.Sequential, make):
    """Batch norm and 1 × 1 convolution without ReLU between."""
    a, b = _scale_and_shift(proj[0])
    weight = proj[1].weight
    return make(weight * a[:, None, None], proj[1].bias + weight[:, :, 0, 0] @ b)


def _before_norm(conv: nn.Conv2d, scale: Tensor, norm: nn.BatchNorm2d, make):
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
