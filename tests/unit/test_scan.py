"""The selective scan against the recurrence written down."""

import pytest
import torch

from istseg.network import scan
from istseg.network.scan import fused_scan, segment_length, selective_scan


def recurrence(u, delta, a, b, c):
    """Position by position."""
    state = u.new_zeros(u.shape[0], *a.shape)
    y = []
    for t in range(u.shape[2]):
        state = torch.exp(delta[:, :, t, None] * a) * state + b[:, :, t, :, None] * (delta * u)[:, :, t, None]
        y.append((c[:, :, t, :, None] * state).sum(2))
    return torch.stack(y, 2)


def arguments(length, batch=2, groups=3, states=4, width=5, step=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (batch, groups, length)
    return [
        torch.randn(*shape, width, generator=g),
        torch.rand(*shape, width, generator=g) * step,
        -torch.rand(groups, states, width, generator=g) * 4,
        torch.randn(*shape, states, generator=g),
        torch.randn(*shape, states, generator=g),
    ]


@pytest.mark.parametrize("limit", [1, 60 * 32, 60 * 1024])
@pytest.mark.parametrize("length", [1, 2, 7, 32, 150])
def test_values_and_gradients_are_those_of_the_recurrence(length, limit, monkeypatch):
    monkeypatch.setattr(scan, "STATES_CPU", limit)
    given = [t.requires_grad_() for t in arguments(length)]
    weight = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1))
    expected, found = recurrence(*given), selective_scan(*given)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    wanted = torch.autograd.grad((expected * weight).sum(), given)
    for name, gradient, reference in zip(["u", "delta", "a", "b", "c"], torch.autograd.grad((found * weight).sum(), given), wanted, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_large_steps_and_decays_neither_overflow_nor_lose_the_input():
    u, delta, a, b, c = (t.requires_grad_() for t in arguments(300, step=60.0))
    a = a * 20
    y = selective_scan(u, delta, a, b, c)
    torch.testing.assert_close(y, recurrence(u, delta, a, b, c), atol=1e-2, rtol=1e-4)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.sum(), (u, delta, b, c)))


def test_a_long_memory_is_kept_over_many_segments(monkeypatch):
    monkeypatch.setattr(scan, "STATES_CPU", 1)
    u, delta, a, b, c = arguments(4096, batch=1, groups=1)
    u[:, :, 1:] = 0
    y = selective_scan(u.abs(), torch.full_like(delta, 1e-3), a, b.abs(), c.abs())
    assert (y[:, :, -1] > 0).all()


def test_it_computes_in_float32_under_autocast_forward_and_backward():
    given = [t.requires_grad_() for t in arguments(40)]
    exact = selective_scan(*given)
    gradients = torch.autograd.grad(exact.sum(), given)
    with torch.autocast("cpu", torch.bfloat16):
        low = selective_scan(*given)
        again = torch.autograd.grad(low.sum(), given)
        assert selective_scan(*(t.bfloat16() for t in given)).dtype == torch.float32
    assert low.dtype == torch.float32 and torch.equal(low, exact)
    assert all(torch.equal(g, h) for g, h in zip(gradients, again, strict=True))


def test_a_sample_does_not_depend_on_its_batch():
    given = arguments(50, batch=3)
    alone = selective_scan(*(t if t.ndim == 3 else t[1:2] for t in given))
    assert torch.equal(selective_scan(*given)[1:2], alone)


def test_memory_is_bounded_by_the_segment():
    assert segment_length(16384, 4 * 16 * 192, 1 << 19) * 4 * 16 * 192 <= 1 << 19
    assert segment_length(16384, 1 << 30, 1 << 19) == 4
    assert [segment_length(n, 1, 1 << 19) for n in (1, 2, 3, 9)] == [1, 2, 4, 16]


def test_arguments_reach_a_channels_first_kernel_in_its_order():
    """The order that mamba_ssm documents: u, Δ (B, K · D, L), A (K · D, N), B and C (B, K, N, L), a group for D channels in a row."""

    def kernel(u, delta, a, b, c):
        b, c = (t.repeat_interleave(u.shape[1] // t.shape[1], 1) for t in (b, c))
        state, y = torch.zeros(*u.shape[:2], a.shape[1]), []
        for t in range(u.shape[2]):
            state = torch.exp(delta[:, :, t, None] * a) * state + delta[:, :, t, None] * b[..., t] * u[:, :, t, None]
            y.append((state * c[..., t]).sum(-1))
        return torch.stack(y, -1)

    given = arguments(20)
    torch.testing.assert_close(fused_scan(kernel, *given), recurrence(*given))
