"""The partial loss: only P teaches, and its value is the published one."""

import numpy as np
import pytest
import torch

import network_fixtures
from istseg.network.loss import loss_sums
from istseg.network.model import Rna2Seg


def random_case(seed=0, size=16):
    rng = torch.Generator().manual_seed(seed)
    output = torch.randn(2, 3, size, size, generator=rng, requires_grad=True)
    flow = torch.nn.functional.normalize(torch.randn(2, 2, size, size, generator=rng), dim=1)
    cell = torch.rand(2, size, size, generator=rng) < 0.5
    teach = torch.rand(2, size, size, generator=rng) < 0.4
    return output, flow, cell, teach


def test_no_gradient_outside_of_p():
    output, flow, cell, teach = random_case()
    loss_sums(output, flow, cell, teach).loss.backward()
    silent = ~teach[:, None].expand_as(output)
    assert (output.grad[silent] == 0).all()
    assert (output.grad[~silent] != 0).all()


def test_targets_outside_of_p_do_not_matter_even_when_broken():
    output, flow, cell, teach = random_case()
    good = loss_sums(output, flow, cell, teach).loss
    broken_output = torch.where(teach[:, None], output, torch.inf)
    broken = loss_sums(broken_output, torch.where(teach[:, None], flow, torch.nan), cell ^ ~teach, teach).loss
    assert torch.equal(good, broken)


def test_is_the_mean_over_p():
    output, flow, cell, teach = random_case()
    by_hand = []
    for b, y, x in teach.nonzero().tolist():
        o = output[b, :, y, x].detach().double().numpy()
        p = 1 / (1 + np.exp(-o[2]))
        entropy = -np.log(p if cell[b, y, x] else 1 - p)
        by_hand.append(entropy + ((o[:2] - 5 * flow[b, :, y, x].numpy()) ** 2).mean())
    assert loss_sums(output, flow, cell, teach).loss.item() == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_nothing_to_learn_is_zero_and_not_nan():
    output, flow, cell, teach = random_case()
    sums = loss_sums(output, flow, cell, torch.zeros_like(teach))
    sums.loss.backward()
    assert sums.loss.item() == 0 and (output.grad == 0).all()


@pytest.fixture(scope="module")
def golden():
    return network_fixtures.golden("train_step.npz")


def golden_targets(golden):
    flows = torch.tensor(golden["flows"])
    return flows[:, 2:], flows[:, 1] > 0.5, torch.tensor(golden["mask_gradient"]) > 0


def test_golden_loss_of_the_published_package(golden):
    sums = loss_sums(torch.tensor(golden["out"]), *golden_targets(golden))
    assert float(sums.loss) == pytest.approx(float(golden["loss"]), rel=1e-6)


@pytest.mark.slow
def test_golden_gradients_of_the_published_package(golden):
    """Network and loss together, train mode (statistics of the batch), float32."""
    state, io = network_fixtures.golden("net_state.npz"), network_fixtures.golden("net_io_eval.npz")
    model = Rna2Seg()
    model.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    model.train()
    stains = torch.tensor(np.concatenate([io["k3_dapi"], io["k3_cellbound"]], 1))
    # torch's own convolutions: those of oneDNN round by the kind of CPU, and on some the gradient of the narrowest bias leaves the bound, as float64 does.
    with torch.backends.mkldnn.flags(enabled=False):
        sums = loss_sums(model(stains, torch.tensor(io["k3_rna"])), *golden_targets(golden))
        sums.loss.backward()
    assert sums.loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    parameters = dict(model.named_parameters())
    wanted = dict(zip(golden["grad_norm_names"].tolist(), golden["grad_norms"].tolist(), strict=True))
    assert not [n for n, norm in wanted.items() if parameters[n].grad is None and norm > 0]
    # ReLU and the channel maximum switch where float32 rounds differently: the same network in float64 differs from float32 by up to 4 % in these norms.
    largest = max(wanted.values())
    for name, norm in wanted.items():
        got = 0.0 if parameters[name].grad is None else float(parameters[name].grad.norm())
        assert got == pytest.approx(norm, rel=0.05, abs=2e-3 * largest), name
    for key in (k for k in golden if k.startswith("grad/") and np.abs(golden[k]).max() > 0.01):
        got, want = parameters[key[5:]].grad.numpy().ravel().astype(float), golden[key].ravel().astype(float)
        assert got @ want / np.linalg.norm(got) / np.linalg.norm(want) > 0.998, key
    for key in ("grad/model.output.2.weight", "grad/model.output.2.bias"):
        assert np.allclose(parameters[key[5:]].grad.numpy(), golden[key], rtol=1e-3, atol=1e-5), key
    buffers = dict(model.named_buffers())
    for key in (k for k in golden if k.startswith("buf/")):
        assert np.allclose(buffers[key[4:]].numpy(), golden[key], rtol=1e-4, atol=1e-5), key
