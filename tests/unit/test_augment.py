"""Augmentation: geometry keeps flows true, and the stains' changes stay in the stains."""

import numpy as np
import pytest
import torch

from istseg.network import augment as A
from istseg.network.flows import flow_targets


def labels_image(size=96, seed=0):
    """Cells of different shapes, none of them symmetric."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    yy, xx = np.indices((size, size))
    for i, (y, x) in enumerate([(22, 24), (26, 68), (66, 26), (68, 68)], 1):
        a, b, t = rng.uniform(8, 16), rng.uniform(6, 10), rng.uniform(0, np.pi)
        u, v = (yy - y) * np.cos(t) + (xx - x) * np.sin(t), (xx - x) * np.cos(t) - (yy - y) * np.sin(t)
        labels[((u / a) ** 2 + (v / b) ** 2 < 1) & (u > -0.6 * a)] = i
    return labels


def flows_of(labels):
    return flow_targets(torch.as_tensor(np.ascontiguousarray(labels), dtype=torch.int64)[None])[0][0].numpy()


def example_of(labels, k=2, seed=0):
    rng = np.random.default_rng(seed)
    return A.Example(
        rng.random((1 + k, *labels.shape), dtype=np.float32) + 0.5,
        rng.poisson(0.3, labels.shape).astype(np.float32),
        flows_of(labels),
        labels > 0,
        rng.random(labels.shape) < 0.8,
    )


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_flows_turn_with_the_cells(turns, mirror):
    labels = labels_image()
    turned = A.quarter_turns(example_of(labels), turns, mirror)
    expected = np.rot90(labels, turns)
    expected = expected[:, ::-1] if mirror else expected
    assert np.array_equal(turned.cell, expected > 0)
    wanted = flows_of(expected)
    angle = (turned.flow * wanted).sum(0)[expected > 0]
    # The centre is the first of equally near pixels, which need not be the turned one's: single pixels beside it may differ.
    assert np.mean(angle) > 0.995 and np.mean(angle > 0.99) > 0.95


def test_a_wrong_sign_would_be_seen():
    labels = labels_image()
    turned = A.quarter_turns(example_of(labels), 0, True)
    wrong = turned.flow * np.array([1, -1])[:, None, None]
    assert (wrong * flows_of(labels[:, ::-1])).sum(0)[turned.cell].mean() < 0.5


@pytest.mark.parametrize("degrees", [-40, -15, 10, 45])
def test_flows_turn_with_the_cells_at_any_angle(degrees):
    labels = labels_image()
    example = example_of(labels)
    turned = A.rotate(example, np.deg2rad(degrees), (0, 0), labels.shape)
    as_stains = A.Example(labels[None].astype(np.float32), labels.astype(np.float32), example.flow, example.cell, example.teach)
    new_labels = A.rotate(as_stains, np.deg2rad(degrees), (0, 0), labels.shape).counts.astype(np.int32) * turned.cell
    angle = (turned.flow * flows_of(new_labels)).sum(0)[new_labels > 0]
    assert np.mean(angle) > 0.97
    length = np.linalg.norm(turned.flow, axis=0)[turned.cell]
    assert np.allclose(length[length > 0], 1, atol=1e-5)


def test_rotation_keeps_everything_in_register_and_teaches_nothing_outside():
    labels = labels_image()
    example = example_of(labels)
    cells = (labels > 0).astype(np.float32)
    same = A.Example(np.repeat(cells[None], 3, 0), cells, example.flow, labels > 0, np.ones(labels.shape, bool))
    turned = A.rotate(same, 0.5, (0, 0), labels.shape)
    assert np.array_equal((turned.counts > 0) & turned.teach, turned.cell)
    assert ((turned.stains[0] > 0.5) == turned.cell)[turned.teach].mean() > 0.99
    assert not turned.teach[0, 0] and not turned.teach[-1, -1]
    assert turned.teach[labels.shape[0] // 2, labels.shape[1] // 2]


def test_rotation_keeps_the_density_of_transcripts():
    rng = np.random.default_rng(1)
    counts = rng.poisson(0.5, (200, 200)).astype(np.float32)
    blank = np.zeros((200, 200))
    example = A.Example(blank[None].astype(np.float32), counts, np.stack((blank, blank)).astype(np.float32), blank > 0, blank == 0)
    turned = A.rotate(example, 0.6, (50, 50), (100, 100))
    assert turned.counts.mean() == pytest.approx(0.5, rel=0.05)
    assert set(np.unique(turned.counts)) <= set(np.unique(counts))


def test_zero_rotation_is_the_crop():
    example = example_of(labels_image())
    turned = A.rotate(example, 0.0, (16, 24), (48, 40))
    box = np.s_[16:64, 24:64]
    assert np.array_equal(turned.counts, example.counts[box])
    assert np.array_equal(turned.flow, example.flow[:, *box])
    assert np.allclose(turned.stains, example.stains[:, *box], atol=1e-6)


def test_crops_hold_pixels_that_teach():
    example = example_of(labels_image())
    teach = np.zeros_like(example.teach)
    teach[5, 90] = True
    example = A.Example(example.stains, example.counts, example.flow, example.cell, teach)
    found = [A.random_window(example, np.random.default_rng(i), 32) for i in range(40)]
    assert all(e.shape == (32, 32) for e in found)
    assert np.mean([e.teach.any() for e in found]) > 0.7


def test_membranes_drop_on_their_own_and_the_nucleus_stain_never():
    stains = np.ones((4, 8, 8), np.float32)
    rng = np.random.default_rng(0)
    kept = np.array([A.drop_membranes(stains, rng, 0.25)[:, 0, 0] for _ in range(4000)]) > 0
    assert kept[:, 0].all()
    assert kept[:, 1:].mean(0) == pytest.approx([0.75] * 3, abs=0.03)
    assert abs(np.corrcoef(kept[:, 1:].T)[0, 1]) < 0.06
    assert A.drop_membranes(stains[:1], rng, 1.0).all(), "without membrane stains there is nothing to drop"


def test_a_dropped_stain_is_exactly_zero_after_all_augmentation():
    example = example_of(labels_image(), k=3)
    for i in range(20):
        stains = A.augment(example, np.random.default_rng(i), 64, 1.0).stains
        assert (stains[1:] == 0).all() and stains[0].any()


def test_each_change_of_the_stains_happens_and_leaves_the_original_alone():
    original = np.random.default_rng(0).random((3, 64, 64), dtype=np.float32) + 1
    kept = original.copy()
    for change in (A.change_brightness, A.blur, A.mask_rectangles):
        results = [change(original, np.random.default_rng(i)) for i in range(30)]
        changed = np.array([[not np.array_equal(a, b) for a, b in zip(r, original, strict=True)] for r in results])
        assert 0.05 < changed.mean() < 0.8, change
        assert all(r.dtype == np.float32 for r in results)
    assert np.array_equal(original, kept)


def test_the_same_generator_draws_the_same():
    example = example_of(labels_image())
    a, b, c = (A.augment(example, np.random.default_rng(s), 64, 0.25) for s in (7, 7, 8))
    assert np.array_equal(a.stains, b.stains) and np.array_equal(a.flow, b.flow) and np.array_equal(a.teach, b.teach)
    assert not np.array_equal(a.stains, c.stains)
