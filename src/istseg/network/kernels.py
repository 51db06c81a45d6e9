"""CUDA kernels for what torch does in many launches or many passes over memory; compiled at first use by NVRTC, which comes with torch (no compiler needed).

Maps are (B, C, H, W) in channels-last order, C a multiple of 8, bfloat16 or float16; sums are made in float32.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import lru_cache
from threading import Lock, Thread

import torch
from torch import Tensor
from torch.cuda import _utils as torch_cuda

from istseg.errors import IstsegError

GROUP = 8
"""Channels that a thread reads and writes at once: 16 bytes."""
_THREADS = 256
_NUMBERS = {
    torch.bfloat16: """
__device__ float to_float(unsigned short v) { return __uint_as_float((unsigned)v << 16); }
__device__ unsigned short from_float(float v) { unsigned short r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
""",
    torch.float16: """
__device__ float to_float(unsigned short v) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v)); return r; }
__device__ unsigned short from_float(float v) { unsigned short r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
""",
}
_MAPS = """
// Unlike fmaxf, keeps what is not a number, so that it is seen in the end.
__device__ float relu_of(float v) { return v < 0.f ? 0.f : v; }

union Eight { uint4 bits; unsigned short v[8]; };

// relu(sign · x + shift), each pixel `zoom` × `zoom` times; one thread per 8 channels of a pixel of x.
extern "C" __global__ void activate(const uint4* x, const float* sign, const float* shift, uint4* out, int n, int groups, int pixels, int width,
                                    int shift_rows, int zoom) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int group = i % groups, pixel = i / groups, sample = pixel / pixels;
    const float* a = sign + group * 8;
    const float* b = shift + (shift_rows > 1 ? sample * groups * 8 : 0) + group * 8;
    Eight e; e.bits = x[i];
    #pragma unroll
    for (int k = 0; k < 8; k++) e.v[k] = from_float(relu_of(fmaf(a[k], to_float(e.v[k]), b[k])));
    if (zoom == 1) { out[i] = e.bits; return; }
    int at = pixel % pixels, y = at / width, column = at % width;
    long long corner = (((long long)sample * pixels + (long long)y * width) * 4 + column * 2) * groups + group;
    out[corner] = e.bits; out[corner + groups] = e.bits;
    out[corner + 2LL * width * groups] = e.bits; out[corner + (2LL * width + 1) * groups] = e.bits;
}

// x + sign · other + shift, then ReLU or not; `other` may be of half the size (zoom 2): each of its pixels counts for 2 × 2.
extern "C" __global__ void add(const uint4* x, const uint4* other, const float* sign, const float* shift, uint4* out, int n, int groups, int pixels,
                               int width, int shift_rows, int zoom, int relu) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int group = i % groups, pixel = i / groups, sample = pixel / pixels;
    int from = i;
    if (zoom == 2) {
        int at = pixel % pixels, y = at / width, column = at % width;
        from = (sample * (pixels / 4) + (y / 2) * (width / 2) + column / 2) * groups + group;
    }
    const float* a = sign + group * 8;
    const float* b = shift + (shift_rows > 1 ? sample * groups * 8 : 0) + group * 8;
    Eight e, o; e.bits = x[i]; o.bits = other[from];
    #pragma unroll
    for (int k = 0; k < 8; k++) {
        float sum = fmaf(a[k], to_float(o.v[k]), to_float(e.v[k])) + b[k];
        e.v[k] = from_float(relu ? relu_of(sum) : sum);
    }
    out[i] = e.bits;
}
"""
_HEAT = """
// One block per cell: heat spreads from its source inside the cell, in a box of side × side with one ring of zeros, for steps_per_side × side steps. Sums in
// the order of the torch version: rows first, then columns, times a ninth; nothing is contracted, so both give the same bits.
extern "C" __global__ void spread(const float* ninth, const long long* start, const int* sides, const int* source, float* heat, float* rows,
                                  int steps_per_side) {
    int side = sides[blockIdx.x], row = side + 2, from = source[blockIdx.x];
    const float* inside = ninth + start[blockIdx.x];
    float* h = heat + start[blockIdx.x];
    float* r = rows + start[blockIdx.x];
    for (int step = 0; step < steps_per_side * side; step++) {
        if (threadIdx.x == 0) h[from] = __fadd_rn(h[from], 1.f);
        __syncthreads();
        for (int i = threadIdx.x; i < side * row; i += blockDim.x)
            r[i] = __fadd_rn(__fadd_rn(h[i], h[i + row]), h[i + 2 * row]);
        __syncthreads();
        for (int i = threadIdx.x; i < side * side; i += blockDim.x) {
            int y = i / side, x = i - y * side, at = (y + 1) * row + x + 1, of = y * row + x;
            h[at] = __fmul_rn(__fadd_rn(__fadd_rn(r[of], r[of + 1]), r[of + 2]), inside[at]);
        }
        __syncthreads();
    }
}
"""
_COMPONENTS = """
__device__ int find(const volatile int* parent, int i) { while (parent[i] != i) i = parent[i]; return i; }

// Union by the smaller index: the root of a component is its first pixel.
__device__ void unite(int* parent, int a, int b) {
    while (true) {
        a = find(parent, a); b = find(parent, b);
        if (a == b) return;
        if (a < b) { int c = a; a = b; b = c; }
        int old = atomicMin(&parent[a], b);
        if (old == a) return;
        a = old;
    }
}

// Parents are the first pixels of runs in a row; a run is united with those above it, once each. Pixels of value 0 are left alone.
extern "C" __global__ void unite_runs(const int* image, int* parent, int n, int width) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n || i < width || !image[i] || image[i] != image[i - width]) return;
    if (i % width && image[i - 1] == image[i] && image[i - 1 - width] == image[i]) return;
    unite(parent, i, i - width);
}

extern "C" __global__ void flatten(int* parent, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) parent[i] = find(parent, i);
}
"""
_SOURCES = {"spread": _HEAT, "unite_runs": _COMPONENTS, "flatten": _COMPONENTS}
_compiling = Lock()


def source_of(name: str, precision: torch.dtype | None = None) -> str:
    """CUDA source of a kernel; of maps in a precision."""
    return _SOURCES[name] if precision is None else _NUMBERS[precision] + _MAPS


@lru_cache
def compiled(source: str, capability: tuple[int, int]) -> bytes:
    """Machine code for GPUs of a compute capability. By NVRTC alone: `torch.cuda._compile_kernel` asks for an installed CUDA toolkit, whose headers are not
    needed here.

    Raises
    ------
    IstsegError
        With the compiler's words.
    """
    nvrtc = torch_cuda._get_gpu_rtc_library()
    program = ctypes.c_void_p()
    _checked(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"istseg.cu", 0, None, None), "cannot be begun")
    try:
        option = f"--gpu-architecture=sm_{capability[0]}{capability[1]}".encode()
        failed = nvrtc.nvrtcCompileProgram(program, 1, (ctypes.c_char_p * 1)(option))
        _checked(failed, _read(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).rstrip(b"\0").decode() if failed else "")
        return _read(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(program: ctypes.c_void_p, size_of, content_of) -> bytes:
    size = ctypes.c_size_t()
    _checked(size_of(program, ctypes.byref(size)), "cannot be read")
    content = ctypes.create_string_buffer(size.value)
    _checked(content_of(program, content), "cannot be read")
    return content.raw


def _checked(failed: int, why: str) -> None:
    if failed:
        raise IstsegError(f"the kernels for the GPU do not compile (NVRTC error {failed}): {why}")


def prepare(precision: torch.dtype) -> None:
    """Begin to compile all kernels for this GPU, in a thread beside other work. An error comes up again where a kernel is used."""
    sources = {*_SOURCES.values(), *([source_of("activate", precision)] if precision in _NUMBERS else [])}

    def work() -> None:
        with suppress(IstsegError):
            for source in sources:
                _code(source)

    Thread(target=work, daemon=True).start()


def _code(source: str) -> bytes:
    """Machine code for this GPU; whoever asks while it is being compiled waits for it."""
    with _compiling:
        return compiled(source, torch.cuda.get_device_capability())


@lru_cache
def _kernel(name: str, precision: torch.dtype | None = None):
    return torch_cuda._cuda_load_module(_code(source_of(name, precision)), [name])[name]


def activate(x: Tensor, sign: Tensor, shift: Tensor, zoom: int = 1) -> Tensor:
    """relu(sign · x + shift), and with `zoom` 2 the result at twice the size (nearest neighbour).

    Parameters
    ----------
    x
        (B, C, H, W).
    sign, shift
        (C,) float32; the shift also (B, C), one for each sample.
    """
    batch, channels, height, width = x.shape
    out = torch.empty((batch, channels, zoom * height, zoom * width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    n = x.numel() // GROUP
    numbers = [n, channels // GROUP, height * width, width, shift.dim(), zoom]
    _kernel("activate", x.dtype)((-(-n // _THREADS), 1, 1), (_THREADS, 1, 1), [_map(x), _vector(sign), _vector(shift), out, *numbers])
    return out


def add(x: Tensor, other: Tensor, sign: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """Sum x + sign · other + shift, then ReLU or not, written into `x`.

    Parameters
    ----------
    x
        (B, C, H, W).
    other
        As x, or of half its height and width: enlarged by nearest neighbour.
    sign, shift
        (C,) float32; the shift also (B, C), one for each sample.
    """
    batch, channels, height, width = x.shape
    n = x.numel() // GROUP
    zoom = height // other.shape[2]
    numbers = [n, channels // GROUP, height * width, width, shift.dim(), zoom, int(relu)]
    _kernel("add", x.dtype)((-(-n // _THREADS), 1, 1), (_THREADS, 1, 1), [_map(x), _map(other), _vector(sign), _vector(shift), x, *numbers])
    return x


def spread_heat(ninth: Tensor, start: Tensor, sides: Tensor, source: Tensor, steps_per_side: int) -> Tensor:
    """Heat of cells in boxes of their own, see `network.flows`.

    Parameters
    ----------
    ninth
        (Q,) float32, the boxes of all cells one after the other, each (side + 2)² by rows: 1/9 inside the cell, else 0; the outer ring is 0.
    start, sides, source
        (n,) int64 where each box begins; its side; place of the cell's centre in its box.
    steps_per_side
        Heat makes so many steps times the side.

    Returns
    -------
    (Q,) float32.
    """
    heat, rows = torch.zeros_like(ninth), torch.empty_like(ninth)
    _kernel("spread")((len(start), 1, 1), (_THREADS, 1, 1), [ninth, start.contiguous(), sides.int(), source.int(), heat, rows, steps_per_side])
    return heat


def components(image: Tensor) -> Tensor:
    """(H, W) int32 → (H, W) int32 flat index of the first pixel of the 4-connected component of equal value that a pixel belongs to; means nothing where the
    value is 0.
    """
    image = image.contiguous()
    n, width = image.numel(), image.shape[1]
    at = torch.arange(n, dtype=torch.int32, device=image.device).reshape(image.shape)
    begins = torch.ones_like(image, dtype=torch.bool)
    torch.ne(image[:, 1:], image[:, :-1], out=begins[:, 1:])
    parent = torch.cummax((at * begins).flatten(), 0).values.contiguous()
    grid, block = (-(-n // _THREADS), 1, 1), (_THREADS, 1, 1)
    _kernel("unite_runs")(grid, block, [image, parent, n, width])
    _kernel("flatten")(grid, block, [parent, n])
    return parent.reshape(image.shape)


def _map(x: Tensor) -> Tensor:
    if not x.is_contiguous(memory_format=torch.channels_last) or x.shape[1] % GROUP:
        raise ValueError(f"a map must be channels-last with a multiple of {GROUP} channels, not {tuple(x.shape)}")
    return x


def _vector(values: Tensor) -> Tensor:
    if values.dtype != torch.float32 or not values.is_contiguous():
        raise ValueError("signs and shifts must be contiguous float32")
    return values
