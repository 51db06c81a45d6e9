"""The selective scan of Mamba (Gu and Dao 2023) in plain torch: h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t, y_t = C_t h_t.

A scan of 16,384 positions neither loops over them one by one nor keeps all their states. Positions are taken by segments, whose number of states is bounded;
within a segment lanes run side by side, and each lane then gets what the one before it leaves (a two-level scan, twice the work of the plain recurrence).
Only products of decays occur, all between 0 and 1, so nothing overflows whatever Δ and A are. The backward pass keeps one state per segment and computes the
others again.

Where the package mamba_ssm is installed and the tensors are on CUDA, its fused kernel is used: the same sums, rounded in another order. Only the order of its
arguments is tested, never the kernel itself: no machine with both was at hand.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

log = logging.getLogger("istseg")

STATES_CPU, STATES_CUDA = 1 << 19, 1 << 24
"""States of a sample that are held at once: on a CPU about what its cache holds; on a GPU enough to fill it."""


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan sequences, in float32 whatever the autocast.

    Parameters
    ----------
    u, delta
        (B, K, L, D) inputs and positive step sizes; K groups (directions).
    a
        (K, N, D), negative.
    b, c
        (B, K, L, N).

    Returns
    -------
    (B, K, L, D) float32. Samples of a batch do not influence each other, nor does their number.
    """
    u, delta, a, b, c = (t.float() for t in (u, delta, a, b, c))
    with torch.autocast(u.device.type, enabled=False):
        if u.is_cuda and (fused := _fused_kernel()):
            return fused_scan(fused, u, delta, a, b, c)
        length = u.shape[2]
        segment = segment_length(length, a.numel(), STATES_CUDA if u.is_cuda else STATES_CPU)
        # Positions without a step neither decay nor add.
        u, delta, b, c = (F.pad(t, (0, 0, 0, -length % segment)) for t in (u, delta, b, c))
        return _Scan.apply(u, delta, a, b, c, segment)[:, :, :length]


def segment_length(length: int, states: int, limit: int) -> int:
    """Positions per segment, a power of 2: as many as `limit` allows, `states` each, and not many more than there are."""
    most = max(limit // states, 4)
    return 1 << min(most.bit_length() - 1, (length - 1).bit_length())


def fused_scan(kernel: Callable[..., Tensor], u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`selective_scan` by a function like mamba_ssm's `selective_scan_fn`: channels first, so u and Δ (B, K · D, L), A (K · D, N), B and C (B, K, N, L)."""
    groups = u.shape[1]
    u, delta = (t.transpose(2, 3).flatten(1, 2).contiguous() for t in (u, delta))
    b, c = (t.transpose(2, 3).contiguous() for t in (b, c))
    y = kernel(u, delta, a.transpose(1, 2).flatten(0, 1).contiguous(), b, c)
    return y.unflatten(1, (groups, -1)).transpose(2, 3)


@cache
def _fused_kernel() -> Callable[..., Tensor] | None:
    if importlib.util.find_spec("mamba_ssm") is None:
        log.debug("selective scan: plain torch; the package mamba_ssm is not installed")
        return None
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    log.debug("selective scan: the fused kernel of mamba_ssm")
    return selective_scan_fn


class _Scan(torch.autograd.Function):
    """Segment after segment; states are (B, K, positions, N, D), D innermost, so that all sums over N or D are matrix products."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, segment: int) -> Tensor:
        state = u.new_zeros(u.shape[0], *a.shape)
        y = torch.empty_like(u)
        starts = []
        for begin in range(0, u.shape[2], segment):
            at = slice(begin, begin + segment)
            if any(ctx.needs_input_grad):
                starts.append(state)
            h = _inputs(u[:, :, at], delta[:, :, at], b[:, :, at])
            _recur(_decay(delta[:, :, at], a), h, state)
            y[:, :, at] = (c[:, :, at, None] @ h)[:, :, :, 0]
            state = h[:, :, -1].clone()
        ctx.segment = segment
        ctx.save_for_backward(u, delta, a, b, c, *starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, a, b, c, *starts = ctx.saved_tensors
        grad_u, grad_delta, grad_a, grad_b, grad_c = (torch.empty_like(t) for t in (u, delta, a, b, c))
        grad_a.zero_()
        from_next = torch.zeros_like(starts[0])
        with torch.autocast(u.device.type, enabled=False):
            for i in reversed(range(len(starts))):
                at = slice(i * ctx.segment, (i + 1) * ctx.segment)
                from_next = _segment_gradients(
                    *(t[:, :, at] for t in (u, delta, b, c, grad_y)), a, starts[i], from_next,
                    *(t[:, :, at] for t in (grad_u, grad_delta, grad_b, grad_c)), grad_a,
                )  # fmt: skip
        return grad_u, grad_delta, grad_a, grad_b, grad_c, None


def _decay(delta: Tensor, a: Tensor) -> Tensor:
    return (delta[..., None, :] * a[:, None]).exp_()


def _inputs(u: Tensor, delta: Tensor, b: Tensor) -> Tensor:
    return b[..., None] * (delta * u)[..., None, :]


def _recur(decay: Tensor, h: Tensor, start: Tensor) -> None:
    """h_t ← decay_t h_{t-1} + h_t along dimension 2, from `start`; in place, decay is used up."""
    positions = h.shape[2]
    lanes = 1 << (positions.bit_length() - 1) // 2
    decay, h = decay.unflatten(2, (lanes, -1)), h.unflatten(2, (lanes, -1))
    h[:, :, 0, 0].addcmul_(decay[:, :, 0, 0], start)
    for i in range(1, positions // lanes):
        h[:, :, :, i].addcmul_(decay[:, :, :, i], h[:, :, :, i - 1])
        decay[:, :, 1:, i].mul_(decay[:, :, 1:, i - 1])
    for i in range(1, lanes):
        h[:, :, i].addcmul_(decay[:, :, i], h[:, :, i - 1, -1:])


def _segment_gradients(
    u: Tensor, delta: Tensor, b: Tensor, c: Tensor, grad_y: Tensor, a: Tensor, start: Tensor, from_next: Tensor,
    grad_u: Tensor, grad_delta: Tensor, grad_b: Tensor, grad_c: Tensor, grad_a: Tensor,
) -> Tensor:  # fmt: skip
    """Write the gradients of a segment, add to that of A, and return the gradient of the state that the segment starts from.

    `from_next` is the gradient that the next segment gives to this one's last state.
    """
    decay = _decay(delta, a)
    h = _inputs(u, delta, b)
    _recur(decay.clone(), h, start)
    grad_c.copy_((h @ grad_y[..., None])[..., 0])
    # The gradient of a state is a scan from the end, with the decay of the following position.
    grad_h = (c[..., None] * grad_y[..., None, :]).flip(2)
    following = decay.roll(-1, 2).flip(2)
    following[:, :, 0] = 1
    _recur(following, grad_h, from_next)
    grad_h = grad_h.flip(2)
    grad_b.copy_((grad_h @ (delta * u)[..., None])[..., 0])
    grad_input = (b[..., None, :] @ grad_h)[:, :, :, 0]
    grad_u.copy_(grad_input * delta)
    to_start = decay[:, :, 0] * grad_h[:, :, 0]
    before = torch.cat((start[:, :, None], h[:, :, :-1]), 2)
    grad_exponent = grad_h.mul_(before).mul_(decay)
    grad_delta.copy_(grad_input * u + (grad_exponent * a[:, None]).sum(3))
    grad_a += (grad_exponent * delta[..., None, :]).sum((0, 2))
    return to_start
