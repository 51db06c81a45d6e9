"""Flow targets, and cells from flows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import label as connected

from istseg.network import dynamics
from istseg.network.dynamics import follow, labels_from_field
from istseg.network.flows import flow_targets, solve_cells
from istseg.qc.matching import match_labels, scores
from network_fixtures import best_iou, golden, paint


def ideal_field(labels: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    flow = flow_targets(torch.tensor(labels)[None])[0][0].numpy()
    flow = flow + np.random.default_rng(seed).normal(0, noise, flow.shape)
    return np.concatenate([flow, np.where(labels > 0, 4.0, -4.0)[None]]).astype(np.float32)


@pytest.fixture(scope="module")
def tissue():
    labels = paint(300, 340, seed=4).cells
    return labels, ideal_field(labels, noise=0.25)


# --- flow targets


def test_flow_targets_equal_cellposes():
    g = golden("train_step.npz")
    labels = g["labels"]
    flow, heat = flow_targets(torch.tensor(labels))
    inside = labels > 0
    distance = np.sqrt(((flow.numpy() - g["flows"][:, 2:4]) ** 2).sum(1))
    # Cellpose's number of steps is that of the largest cell of the image, ours of the cell itself.
    assert distance[inside].mean() < 0.01
    assert np.percentile(distance[inside], 99.9) < 0.2
    assert not distance[~inside].any()
    assert (heat.numpy()[inside] > 0).all()


def test_targets_are_unit_vectors_towards_the_centre_and_zero_outside():
    y, x = np.mgrid[:90, :90]
    disc = ((y - 45) ** 2 + (x - 40) ** 2 < 30**2).astype(np.int64) * 7
    flow, heat = (t[0].numpy() for t in flow_targets(torch.tensor(disc)[None]))
    length = np.hypot(*flow)
    far = (disc > 0) & (np.hypot(y - 45, x - 40) > 2)
    np.testing.assert_allclose(length[far], 1, atol=1e-5)
    assert not length[disc == 0].any()
    assert np.unravel_index(heat.argmax(), heat.shape) == (45, 40)
    towards = -(flow[0] * (y - 45) + flow[1] * (x - 40)) / np.maximum(np.hypot(y - 45, x - 40), 1)
    assert towards[far].min() > 0.95


def test_large_and_winding_cells_are_reached_everywhere():
    labels = np.zeros((420, 420), np.int32)
    labels[10:410, 10:410] = 1
    winding = np.zeros((420, 420), np.int32)
    for i, row in enumerate(range(20, 200, 24)):
        winding[row : row + 12, 20:180] = 1
        winding[row : row + 36, 168:180] = 1 if i % 2 == 0 else winding[row : row + 36, 168:180]
        winding[row : row + 36, 20:32] = 1 if i % 2 else winding[row : row + 36, 20:32]
    assert connected(winding)[1] == 1
    flow, heat = flow_targets(torch.tensor(np.stack([labels, winding])))
    unreached = (heat.numpy() == 0) & (np.stack([labels, winding]) > 0)
    assert not unreached[0].any()
    assert np.hypot(*flow[0].numpy())[(labels > 0)].mean() > 0.999
    # A snake four sides long: heat covers at least the half around its centre.
    assert unreached[1].sum() / winding.sum() < 0.5


def test_a_cells_target_depends_on_nothing_but_its_mask(tissue):
    labels, _ = tissue
    whole = flow_targets(torch.tensor(labels)[None])[0][0].numpy()
    chosen = np.bincount(labels[140:180, 140:200].ravel())[1:].argmax() + 1
    alone = np.where(labels == chosen, 1, 0)[90:230, 90:250]
    assert alone.sum() == (labels == chosen).sum() > 300
    again = flow_targets(torch.tensor(alone)[None])[0][0].numpy()
    assert np.array_equal(again[:, alone > 0], whole[:, 90:230, 90:250][:, alone > 0])


def test_targets_of_nothing():
    flow, heat = flow_targets(torch.zeros((2, 16, 24), dtype=torch.int32))
    assert flow.shape == (2, 2, 16, 24)
    assert not flow.any()
    assert not heat.any()


# --- cells


@pytest.mark.parametrize(("error", "name"), [(0.9, "masks_float_t09"), (0.4, "masks_float_t04")])
def test_masks_equal_cellposes(error, name):
    g = golden("flows_to_masks.npz")
    field = np.concatenate([g["dP"] / 5, g["cellprob"][None]]).astype(np.float32)
    found = labels_from_field(field, flow_error=error)
    assert found.max() == g[name].max()
    assert scores(match_labels(g[name], found), (0.9,))["ap@0.9"] >= 0.99
    assert best_iou(g[name].astype(int), found).mean() > 0.95
    assert best_iou(g["labels"], found).mean() > 0.95


def test_cells_are_found_again_and_60_steps_are_enough(tissue):
    labels, field = tissue
    found = labels_from_field(field)
    complete = np.isin(labels, [i for i in np.unique(labels) if i and (labels == i).sum() > 250])
    iou = best_iou(np.where(complete, labels, 0), found)
    assert len(iou) > 50
    assert (iou > 0.9).all()
    longer = labels_from_field(field, steps=200)
    assert (found != longer).mean() < 1e-3


def test_cells_are_one_part_without_holes(tissue):
    _, field = tissue
    field = field.copy()
    field[2, 40:300:9, 30:300:7] = -9
    found = labels_from_field(field)
    for number in range(1, found.max() + 1):
        mask = found == number
        assert connected(mask)[1] == 1
    enclosed = connected(found == 0)[0]
    touching_edge = np.unique(np.concatenate([enclosed[0], enclosed[-1], enclosed[:, 0], enclosed[:, -1]]))
    for part in set(np.unique(enclosed)) - set(touching_edge) - {0}:
        ring = np.unique(found[_rim(enclosed == part)])
        assert len(ring[ring > 0]) > 1


def _rim(mask):
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown & ~mask


@pytest.mark.parametrize("shift", [(37, 61), (5, 0), (0, 13)])
def test_cells_do_not_depend_on_where_the_array_begins(tissue, shift):
    _, field = tissue
    dy, dx = shift
    whole = labels_from_field(field)
    part = labels_from_field(field[:, dy:, dx:])
    margin = 90
    inner = np.s_[margin:-margin, margin:-margin]
    a, b = whole[dy:, dx:][inner], part[inner]
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    assert len(pairs[0]) > 10
    # The same pixels, each number paired with one number only.
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    assert ((a > 0) == (b > 0)).all()


def test_what_happens_far_away_does_not_matter(tissue):
    _, field = tissue
    other = field.copy()
    other[:, :, 220:] = np.random.default_rng(1).normal(0, 1, other[:, :, 220:].shape)
    a, b = labels_from_field(field)[:, :120], labels_from_field(other)[:, :120]
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def test_filters_drop_what_they_say():
    labels = np.zeros((120, 240), np.int32)
    y, x = np.mgrid[:120, :240]
    for number, (cx, radius) in enumerate([(30, 20), (90, 20), (150, 20), (200, 6)], 1):
        labels[(y - 60) ** 2 + (x - cx) ** 2 < radius**2] = number
    field = ideal_field(labels)
    field[:2, labels == 2] *= 0.3
    # Flows that swirl around the centre still end near it, but are not those of the shape.
    turn = np.deg2rad(62)
    fy, fx = field[0].copy(), field[1].copy()
    field[0] = np.where(labels == 3, np.cos(turn) * fy - np.sin(turn) * fx, fy)
    field[1] = np.where(labels == 3, np.sin(turn) * fy + np.cos(turn) * fx, fx)

    def survivors(**how):
        found = labels_from_field(field, **{"min_flow": 0, "flow_error": 0, "min_area_wpx": 50, "steps": 120} | how)
        return {i for i in range(1, 5) if (found[labels == i] > 0).mean() > 0.5}

    assert survivors() == {1, 2, 3, 4}
    assert survivors(min_area_wpx=200) == {1, 2, 3}
    assert survivors(min_flow=0.5) == {1, 3, 4}
    assert survivors(flow_error=0.9) == {1, 2, 4}
    assert survivors(flow_error=0.4) == {1, 4}


@pytest.mark.parametrize("logit", [-5.0, 5.0])
def test_no_cells(logit):
    field = np.zeros((3, 40, 50), np.float32)
    field[2] = logit
    found = labels_from_field(field)
    assert found.shape == (40, 50)
    assert found.dtype == np.int32
    assert not found.any()


def test_following_stops_at_the_border_and_interpolates():
    flow = torch.zeros((2, 8, 9))
    flow[1] = 0.75
    y, x = torch.tensor([0, 3, 7]), torch.tensor([0, 8, 4])
    ends = follow(flow, y, x, 4)
    assert ends[0].tolist() == [0, 3, 7]
    assert ends[1].tolist() == [3, 8, 7]
    flow = torch.zeros((2, 3, 9))
    flow[1, :, ::2] = 1.0
    # 0 → 1.0 (flow 0 at odd columns) and stays.
    assert follow(flow, torch.tensor([1]), torch.tensor([0]), 50)[1].item() == 1


def test_equal_sinks_are_ordered_by_place():
    paths = torch.zeros((20, 20), dtype=torch.int64)
    paths[5, 5] = paths[5, 7] = 50
    paths[12, 12] = paths[3, 14] = 40
    # (5, 7) is beaten by its equal neighbour (5, 5); the weakest come first.
    assert dynamics._seeds(paths).tolist() == [12 * 20 + 12, 3 * 20 + 14, 5 * 20 + 5]


def test_a_sink_split_in_two_gives_one_cell():
    labels = np.zeros((80, 80), np.int32)
    labels[20:60, 20:60] = 1
    field = ideal_field(labels)
    # No flow in the middle: paths end all over a patch of 5 x 5.
    field[:2, 38:43, 38:43] = 0
    assert labels_from_field(field, flow_error=0).max() == 1


def test_ways_put_together_are_the_single_steps():
    y, x = np.mgrid[:60, :60].astype(np.float32)
    # A spiral into (30.3, 29.6): no two steps have the same direction.
    flow = torch.tensor(np.stack([30.3 - y + 0.4 * (29.6 - x), 29.6 - x - 0.4 * (30.3 - y)])) * 0.05
    rows, columns = (torch.tensor(v.ravel().astype(np.int64)) for v in (y, x))
    way = torch.zeros(2, len(rows))
    for _ in range(64):
        at = torch.stack((rows, columns)).float() + way
        way += torch.stack([30.3 - at[0] + 0.4 * (29.6 - at[1]), 29.6 - at[1] - 0.4 * (30.3 - at[0])]) * 0.05
    ends = torch.stack(follow(flow, rows, columns, 60))
    expected = torch.stack((rows, columns)) + way.floor()
    assert (ends - expected).abs().max() <= 1
    assert ((ends - expected) == 0).float().mean() > 0.95


@pytest.mark.parametrize("limit", [0.9, 0.4])
def test_the_flow_error_near_the_limit_is_exact(tissue, limit):
    labels, field = tissue
    rng = np.random.default_rng(3)
    # Each cell's flow is turned by its own angle: errors from 0 to 4.
    angle = rng.uniform(0, np.pi, labels.max() + 1).astype(np.float32)[labels]
    flow = torch.tensor(np.stack([np.cos(angle) * field[0] - np.sin(angle) * field[1], np.sin(angle) * field[0] + np.cos(angle) * field[1]]))
    numbered = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    y, x = torch.nonzero(torch.tensor(numbered), as_tuple=True)
    cell = torch.tensor(numbered)[y, x] - 1
    n = int(cell.max()) + 1
    values = flow[:, y, x].T
    exact = torch.empty(len(y))
    for at, reference, _ in solve_cells(cell, y, x, n):
        exact[at] = (reference - values[at]).square().sum(1)
    exact = dynamics._means(cell, exact, n)
    found = dynamics._flow_errors(cell, y, x, values, n, limit)
    assert np.array_equal(found <= limit, exact <= limit)
    near = np.abs(exact / limit - 1) < 0.12
    assert near.any()
    assert np.array_equal(found[near], exact[near])
