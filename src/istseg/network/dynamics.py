"""Field of flows → cells: every cell pixel follows the flow; pixels that end at one sink are one cell.

The idea is Cellpose's (Stringer et al. 2021) [paper: inference].

Written to be local. A cell depends on the field near it only (path length + its own size), positions are kept relative to each pixel's own place so
that rounding does not depend on where the array begins, and ties are broken by the order of rows and columns, which is the same in every array. Two tiles
that both see a cell give the same cell.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from skimage.measure import label as connected
from torch import Tensor
from torch.nn import functional as F

from istseg.network import kernels
from istseg.network.flows import solve_cells
from istseg.network.inference import on_host

_SEED_HALF = 2
"""A sink is the fullest pixel of its 5 × 5 neighbourhood."""
_SEED_PATHS = 10
"""More paths than this must end there."""
_GROW_STEPS = 5
_GROW_PATHS = 2
"""A sink grows by so many pixels over pixels where more paths than this end."""
_POINTS = {"cpu": 2**14, "cuda": 2**24}
"""Points that are followed together: on a CPU they should stay in the cache, and torch should not split so little work between threads."""
_SINGLE_STEPS = 8
"""So many steps are made one by one; after them a point is well inside its cell, and ways are put together to ways of twice the length."""
_FLOW_ERROR_LEVELS = ((4, 2.0), (2, 1.3))
"""The flow error of a cell is taken at every fourth pixel of every fourth row first (64 times less work). Where it is within a factor of 2 of the limit it is
taken at every second, and where that is within 1.3 in full,"""
_FEW = 16
"""and so it is where a cell has fewer such pixels."""
_FIXED_POINT = 2.0**32
"""Means are made of sums in so many parts of 1; they stay exact for a million pixels of values up to 1000."""


@torch.inference_mode()
def labels_from_field(
    field: Tensor | np.ndarray,
    logit_threshold: float = -0.5,
    min_flow: float = 0.0,
    flow_error: float = 0.9,
    min_area_wpx: float = 200.0,
    steps: int = 60,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Cells of a field.

    Parameters
    ----------
    field
        (3, H, W) float32: flow y, flow x in unit scale, logit.
    logit_threshold
        A pixel is cell where the logit is above it.
    min_flow
        Cells whose mean flow is shorter are dropped: where the network is unsure its flow shrinks. 0 keeps all.
    flow_error
        Cells are dropped whose field differs by a larger mean squared distance from the flow that their own shape would have; 0 keeps all.
    min_area_wpx
        Smallest area in pixels.
    steps
        Steps of at most about a pixel: the longest way from a cell's rim to its centre. Rounded up as `follow` says.
    device
        Where the flow is followed.

    Returns
    -------
    (H, W) int32 labels 1…n. Each label is one 4-connected part without holes.
    """
    field = torch.as_tensor(field, dtype=torch.float32, device=device)
    labels = _sinks(field, logit_threshold, steps)
    if labels is None:
        return np.zeros(field.shape[1:], np.int32)
    labels = tidy(labels, min_area_wpx)
    if min_flow > 0 or flow_error > 0:
        labels = _renumber(labels, _trusted(field, labels, min_flow, flow_error))
    return on_host(labels)


def follow(flow: Tensor, y: Tensor, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Where points end that follow a flow by Euler steps with bilinear interpolation.

    The first `_SINGLE_STEPS` steps are made one by one. After that the way of 2n steps from a point is its way of n steps and the way of n steps, interpolated,
    from where that ends: 60 steps take 11 passes.

    Parameters
    ----------
    flow
        (2, H, W) float32, pixels per step (y, x).
    y, x
        (P,) int64 starting pixels, each once. Pixels that are not among them are taken to have no flow after the first steps.
    steps
        Number of steps; above `_SINGLE_STEPS` it is rounded up to the next doubling of that.

    Returns
    -------
    (P,) int64 rows and columns of the pixels where they end (cut to whole pixels, as Cellpose does).
    """
    height, width = flow.shape[1:]
    row = width + 1
    home = y * row + x
    # The way from the starting pixel, not the place: float32 rounds alike wherever the array begins.
    # One row and column more than the array: the pixel after the last one is read with weight 0.
    ways = F.pad(flow, (0, 1, 0, 1)).reshape(2, -1)
    way_y, way_x = torch.zeros_like(y, dtype=torch.float32), torch.zeros_like(y, dtype=torch.float32)
    size = _POINTS.get(flow.device.type, _POINTS["cpu"])
    parts = [slice(start, start + size) for start in range(0, len(y), size)]

    @torch.inference_mode()
    def advance(part: slice, times: int) -> None:
        here, dy, dx = home[part], way_y[part], way_x[part]
        low_y, low_x = -y[part].float(), -x[part].float()
        high_y, high_x = low_y + (height - 1), low_x + (width - 1)
        for _ in range(times):
            whole_y, whole_x = dy.floor(), dx.floor()
            base = torch.add(whole_x, whole_y, alpha=row).long().add_(here)
            right, below = base + 1, base + row
            corners = base, right, below, below + 1
            part_y, part_x = dy - whole_y, dx - whole_x
            dy.add_(_bilinear(ways[0], corners, part_y, part_x)).clamp_(low_y, high_y)
            dx.add_(_bilinear(ways[1], corners, part_y, part_x)).clamp_(low_x, high_x)

    made = min(steps, _SINGLE_STEPS)
    with ThreadPoolExecutor(torch.get_num_threads() if flow.device.type == "cpu" else 1) as pool:
        list(pool.map(lambda part: advance(part, made), parts))
        while made < steps:
            ways = torch.zeros_like(ways)
            for rows, way in zip(ways, (way_y, way_x), strict=True):
                rows.index_copy_(0, home, way)
            list(pool.map(lambda part: advance(part, 1), parts))
            made *= 2
    return y + way_y.floor().long(), x + way_x.floor().long()


def _bilinear(values: Tensor, corners: tuple[Tensor, Tensor, Tensor, Tensor], part_y: Tensor, part_x: Tensor) -> Tensor:
    """Between four corners (upper left, upper right, lower left, lower right), weights by the parts of a pixel."""
    upper_left, upper_right, lower_left, lower_right = (values.index_select(0, c) for c in corners)
    upper = torch.lerp(upper_left, upper_right, part_x)
    return torch.lerp(upper, torch.lerp(lower_left, lower_right, part_x), part_y)


def _sinks(field: Tensor, logit_threshold: float, steps: int) -> Tensor | None:
    """(H, W) int32 label of the sink at which each pixel ends; None without any."""
    foreground = field[2] > logit_threshold
    y, x = torch.nonzero(foreground, as_tuple=True)
    height, width = foreground.shape
    if not len(y):
        return None
    ends_y, ends_x = follow(field[:2] * foreground, y, x, steps)
    ends = ends_y * width + ends_x
    paths = torch.bincount(ends, minlength=height * width).reshape(height, width)
    seeds = _seeds(paths)
    if not len(seeds):
        return None
    rank = torch.zeros(height * width, dtype=torch.int32, device=field.device)
    rank[seeds] = torch.arange(1, len(seeds) + 1, dtype=torch.int32, device=field.device)
    rank = F.pad(rank.reshape(height, width), (1, 1, 1, 1)).reshape(-1)
    grow_y, grow_x = torch.nonzero(paths > _GROW_PATHS, as_tuple=True)
    passable = (grow_y + 1) * (width + 2) + grow_x + 1
    for _ in range(_GROW_STEPS):
        # The strongest sink in reach takes a pixel, also another sink: this joins sinks that split one cell.
        around = [rank[passable + dy * (width + 2) + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        rank[passable] = torch.stack(around).amax(0)
    labels = torch.zeros(height * width, dtype=torch.int32, device=field.device)
    labels[y * width + x] = rank[(ends_y + 1) * (width + 2) + ends_x + 1]
    return labels.reshape(height, width)


def _seeds(paths: Tensor) -> Tensor:
    """(S,) flat places of the sinks, weakest first; of equals the one further down or right is the weaker."""
    height, width = paths.shape
    y, x = torch.nonzero(paths > _SEED_PATHS, as_tuple=True)
    own = paths[y, x]
    padded = F.pad(paths, (_SEED_HALF,) * 4)
    best = torch.ones_like(own, dtype=torch.bool)
    for dy in range(-_SEED_HALF, _SEED_HALF + 1):
        for dx in range(-_SEED_HALF, _SEED_HALF + 1):
            other = padded[y + dy + _SEED_HALF, x + dx + _SEED_HALF]
            before = (dy, dx) < (0, 0)
            best &= (other < own) if before else (other <= own)
    flat, strength = (y * width + x)[best], own[best]
    descending = torch.flip(flat, (0,))
    return descending[torch.argsort(torch.flip(strength, (0,)), stable=True)]


def tidy(labels: Tensor, min_area: float) -> Tensor:
    """Largest 4-connected part of each label, parts below the area (pixels) dropped, holes filled; (H, W) int32, numbered by rows."""
    parts = _components(labels)
    place = parts.flatten().long()
    area = torch.bincount(place)
    owner = torch.zeros_like(area)
    owner[place] = labels.flatten().long()
    # Parts are numbered by their first pixel: of equal parts the first one stays.
    rank = area * len(area) + torch.arange(len(area), 0, -1, device=area.device) - 1
    best = torch.zeros(int(owner.max()) + 1, dtype=torch.int64, device=area.device).scatter_reduce(0, owner, rank, "amax")
    keep = (rank == best[owner]) & (area >= min_area)
    keep[0] = False
    return _fill_holes(_renumber(parts, keep))


def _components(labels: Tensor) -> Tensor:
    """(H, W) int32 number of the 4-connected part of each label, by first pixels; 0 where the label is 0."""
    if not labels.is_cuda:
        return torch.from_numpy(connected(labels.numpy(), background=0, connectivity=1).astype(np.int32, copy=False))
    first = kernels.components(labels)
    starts = (first == torch.arange(first.numel(), dtype=torch.int32, device=first.device).reshape(first.shape)) & (labels > 0)
    number = torch.cumsum(starts.flatten(), 0, dtype=torch.int32)
    return number[first.long()] * (labels > 0)


def _fill_holes(labels: Tensor) -> Tensor:
    """Give background that one cell encloses to that cell."""
    holes = _components((labels == 0).int())
    n = int(holes.max()) + 1
    low = torch.full((n,), torch.iinfo(torch.int32).max, dtype=torch.int32, device=labels.device)
    high = torch.zeros_like(low)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:-1], np.s_[1:]), (np.s_[:, 1:], np.s_[:, :-1]), (np.s_[:, :-1], np.s_[:, 1:])):
        touching = (labels[a] == 0) & (labels[b] > 0)
        hole, cell = holes[a][touching].long(), labels[b][touching]
        low.scatter_reduce_(0, hole, cell, "amin")
        high.scatter_reduce_(0, hole, cell, "amax")
    filled = torch.where(low == high, low, 0)
    for edge in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
        filled[edge.long()] = 0
    filled[0] = 0
    return torch.where(labels == 0, filled[holes.long()], labels)


def _trusted(field: Tensor, labels: Tensor, min_flow: float, flow_error: float) -> Tensor:
    """(n + 1,) bool by label: mean flow long enough, and the field like the flow of the cell's own shape."""
    y, x = torch.nonzero(labels, as_tuple=True)
    n = int(labels.max()) if len(y) else 0
    keep = torch.zeros(n + 1, dtype=torch.bool, device=labels.device)
    if not n:
        return keep
    cell = labels[y, x].long() - 1
    flow = field[:2, y, x].T
    keep[1:] = _means(cell, flow.square().sum(1).sqrt(), n) >= min_flow
    if flow_error <= 0:
        return keep
    keep[1:] &= _flow_errors(cell, y, x, flow, n, flow_error) <= flow_error
    return keep


def _flow_errors(cell: Tensor, y: Tensor, x: Tensor, flow: Tensor, n: int, limit: float) -> Tensor:
    """(n,) mean squared distance between the field and the flow of each cell's own shape; exact where it is near the limit, which is all that matters."""

    def errors(cell: Tensor, y: Tensor, x: Tensor, flow: Tensor, n: int) -> Tensor:
        error = torch.empty(len(y), device=flow.device)
        for at, reference, _ in solve_cells(cell, y, x, n):
            error[at] = (reference - flow[at]).square().sum(1)
        return _means(cell, error, n)

    # From the corner of each cell's own box, so that it is the same in every array.
    top, left = (torch.zeros(n, dtype=v.dtype, device=v.device).scatter_reduce(0, cell, v, "amin", include_self=False) for v in (y, x))
    y, x = y - top[cell], x - left[cell]
    error = torch.full((n,), torch.nan, dtype=torch.float64, device=cell.device)
    asked = torch.arange(n, device=cell.device)
    for step, factor in (*_FLOW_ERROR_LEVELS, (1, 1.0)):
        number = torch.full((n,), -1, dtype=torch.int64, device=cell.device)
        number[asked] = torch.arange(len(asked), device=cell.device)
        at = torch.nonzero((number[cell] >= 0) & (y % step == 0) & (x % step == 0))[:, 0]
        member = number[cell[at]]
        error[asked] = errors(member, y[at] // step, x[at] // step, flow[at], len(asked))
        # A thin cell may have no such pixel: its error is not a number.
        few = torch.bincount(member, minlength=len(asked)) < _FEW
        asked = asked[few | ((error[asked] > limit / factor) & (error[asked] < limit * factor))]
        if not len(asked):
            break
    return error


def object_means(labels: Tensor, values: Tensor) -> np.ndarray:
    """(n,) float64 means of a map over the objects 1…n of a label image, both (H, W) on one device; the same in every array that holds an object whole."""
    at = torch.nonzero(labels.flatten())[:, 0]
    cell = labels.flatten()[at].long() - 1
    return _means(cell, values.flatten()[at], int(labels.max())).cpu().numpy()


def _means(cell: Tensor, values: Tensor, n: int) -> Tensor:
    """(n,) float64 mean of each cell, NaN without values. Sums are of whole numbers, so that they do not depend on their order: on the array, on threads."""
    whole = (values.double() * _FIXED_POINT).round().long()
    total = torch.zeros(n, dtype=torch.int64, device=cell.device).scatter_add(0, cell, whole)
    return total.double() / _FIXED_POINT / torch.bincount(cell, minlength=n)


def _renumber(labels: Tensor, keep: Tensor) -> Tensor:
    """Labels that stay, numbered 1…n in their order; the others become 0."""
    new = torch.cumsum(keep, 0, dtype=torch.int32) * keep
    return new[labels.long()]
