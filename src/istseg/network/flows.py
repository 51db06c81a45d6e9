"""Flow targets: unit vectors that lead every pixel of a cell to the cell's centre [paper: RNA2seg network and loss; Cellpose, Stringer et al. 2021].

Heat spreads inside the cell from the pixel nearest its centre; the flow is the direction of its gradient. Each cell is solved in its own box, boxes of
about one size together in one array on the device, so the result of a cell depends on nothing but its own mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from istseg.network import kernels

_SIDES = (12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_STEPS_PER_SIDE = 4
"""Cellpose makes 2 · (height + width) steps, i.e. at most 4 sides: heat crosses a winding cell too."""
_BOX_PIXELS_CPU, _BOX_PIXELS_GPU = 2**17, 2**26
"""Pixels that are solved together: on a CPU they should stay in the cache."""


def flow_targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flows and heat of label images.

    Parameters
    ----------
    labels
        (B, H, W) integers, 0 is background; numbers need not be consecutive. Any device.

    Returns
    -------
    flow
        (B, 2, H, W) float32 unit vectors (y, x); 0 outside cells and at pixels that heat cannot reach (parts apart from the centre's).
    heat
        (B, H, W) float32 ≥ 0, largest at the centres.
    """
    labels = labels.long()
    batch, height, width = labels.shape
    flow = torch.zeros((batch, 2, height, width), dtype=torch.float32, device=labels.device)
    heat = torch.zeros((batch, height, width), dtype=torch.float32, device=labels.device)
    image, y, x = torch.nonzero(labels, as_tuple=True)
    if not len(y):
        return flow, heat
    value = labels[image, y, x]
    ids, cell = torch.unique(image * (value.max() + 1) + value, return_inverse=True)
    for part in solve_cells(cell, y, x, len(ids)):
        at, part_flow, part_heat = part
        flow[image[at], :, y[at], x[at]] = part_flow
        heat[image[at], y[at], x[at]] = part_heat
    return flow, heat


def solve_cells(cell: Tensor, y: Tensor, x: Tensor, n: int):
    """Solve cells given as lists of pixels.

    Parameters
    ----------
    cell, y, x
        (P,) int64: number 0…n − 1 of the cell of each pixel and its place; pixels of a cell in raster order.
    n
        Number of cells; each has at least one pixel.

    Yields
    ------
    (positions in the lists (Q,), flow (Q, 2) float32, heat (Q,) float32), each pixel once.
    """
    top, bottom = _extreme(cell, y, n, "amin"), _extreme(cell, y, n, "amax")
    left, right = _extreme(cell, x, n, "amin"), _extreme(cell, x, n, "amax")
    extent = torch.maximum(bottom - top, right - left) + 1
    sides = torch.tensor(_SIDES, device=y.device)
    if n and int(extent.max()) > _SIDES[-1]:
        raise ValueError(f"a cell is {int(extent.max())} pixels long, the longest that can be solved is {_SIDES[-1]}")
    kind = torch.searchsorted(sides, extent)
    centre = _centres(cell, y, x, n)
    order = torch.argsort(cell, stable=True)
    sizes = torch.bincount(cell, minlength=n)
    starts = torch.cumsum(sizes, 0) - sizes
    if y.is_cuda:
        yield from _solve_on_gpu(order, sizes, starts, sides[kind], cell, y - top[cell], x - left[cell], centre)
        return
    for k in torch.unique(kind).tolist():
        side = _SIDES[k]
        members = torch.nonzero(kind == k)[:, 0]
        for chunk in members.split(max(_BOX_PIXELS_CPU // side**2, 1)):
            at = order[_ranges(starts[chunk], sizes[chunk])]
            slot = torch.repeat_interleave(torch.arange(len(chunk), device=y.device), sizes[chunk])
            # One ring of zeros around every box: neither heat nor flow leaves it.
            place = (slot * (side + 2) + y[at] - top[cell[at]] + 1) * (side + 2) + x[at] - left[cell[at]] + 1
            source = torch.nonzero(at == centre[cell[at]])[:, 0]
            inside = torch.zeros((len(chunk), side + 2, side + 2), dtype=torch.float32)
            inside.view(-1)[place] = 1
            heat = _spread_heat(inside / 9, place[source], _STEPS_PER_SIDE * side).view(-1)
            yield at, _directions(heat, place, side + 2), heat[place]


def _solve_on_gpu(order: Tensor, sizes: Tensor, starts: Tensor, side: Tensor, cell: Tensor, y: Tensor, x: Tensor, centre: Tensor):
    """The end of `solve_cells`, boxes of all sizes together; y and x from the corner of each cell's box. Same bits as one size after the other."""
    row = side + 2
    ends = torch.cumsum(row**2, 0)
    first, done = 0, 0
    while first < len(side):
        # At least one cell, however large.
        stop = max(int(torch.searchsorted(ends, done + _BOX_PIXELS_GPU, right=True)), first + 1)
        last_pixel = int(starts[stop - 1] + sizes[stop - 1])
        at = order[int(starts[first]) : last_pixel]
        box = ends[first:stop] - row[first:stop] ** 2 - done
        own = cell[at] - first
        place = box[own] + (y[at] + 1) * row[cell[at]] + x[at] + 1
        ninth = torch.zeros(int(ends[stop - 1]) - done, dtype=torch.float32, device=y.device)
        ninth[place] = 1
        ninth /= 9
        of = centre[first:stop]
        heat = kernels.spread_heat(ninth, box, side[first:stop], (y[of] + 1) * row[first:stop] + x[of] + 1, _STEPS_PER_SIDE)
        yield at, _directions(heat, place, row[cell[at]]), heat[place]
        first, done = stop, int(ends[stop - 1])


def _directions(heat: Tensor, place: Tensor, row: Tensor | int) -> Tensor:
    """(Q, 2) unit gradient of the heat at places of flattened boxes with so many columns."""
    dy = heat[place + row] - heat[place - row]
    dx = heat[place + 1] - heat[place - 1]
    gradient = torch.stack((dy, dx), 1)
    # The heat of far pixels is tiny: scale before squaring, or the square underflows.
    largest = gradient.abs().amax(1, keepdim=True)
    gradient = torch.where(largest > 0, gradient / largest, 0.0)
    length = gradient.square().sum(1, keepdim=True).sqrt()
    return torch.where(length > 0, gradient / length, 0.0)


def _spread_heat(ninth: Tensor, source: Tensor, steps: int) -> Tensor:
    """Heat of boxes of one size, (n, side + 2, side + 2), after so many steps; `ninth` has that shape, `source` are places in it flattened."""
    n, side = len(ninth), ninth.shape[1] - 2
    ninth = ninth[:, 1:-1, 1:-1].contiguous()
    heat = torch.zeros((n, side + 2, side + 2), dtype=torch.float32, device=ninth.device)
    core, flat = heat[:, 1:-1, 1:-1], heat.view(-1)
    rows = torch.empty((n, side, side + 2), dtype=torch.float32, device=ninth.device)
    square = torch.empty((n, side, side), dtype=torch.float32, device=ninth.device)
    one = torch.ones(len(source), device=ninth.device)
    # Views and buffers are made once: for few cells the calls cost more than the sums.
    above, middle, below = heat[:, :-2], heat[:, 1:-1], heat[:, 2:]
    left, centre, right = rows[..., :-2], rows[..., 1:-1], rows[..., 2:]
    for _ in range(steps):
        flat.index_add_(0, source, one)
        torch.add(above, middle, out=rows).add_(below)
        torch.add(left, centre, out=square).add_(right)
        torch.mul(square, ninth, out=core)
    return heat


def _centres(cell: Tensor, y: Tensor, x: Tensor, n: int) -> Tensor:
    """(n,) position in the lists of the pixel nearest the mean of each cell; the first one of equals."""
    size = torch.bincount(cell, minlength=n)
    zeros = torch.zeros(n, dtype=torch.int64, device=y.device)
    # Integers: size · distance has no rounding, so the choice is the same on every device.
    sum_y, sum_x = zeros.scatter_add(0, cell, y), zeros.scatter_add(0, cell, x)
    dy, dx = y * size[cell] - sum_y[cell], x * size[cell] - sum_x[cell]
    distance = dy * dy + dx * dx
    nearest = torch.full((n,), torch.iinfo(torch.int64).max, device=y.device).scatter_reduce(0, cell, distance, "amin")
    position = torch.arange(len(y), device=y.device)
    candidates = torch.where(distance == nearest[cell], position, len(y))
    return torch.full((n,), len(y), dtype=torch.int64, device=y.device).scatter_reduce(0, cell, candidates, "amin")


def _extreme(cell: Tensor, values: Tensor, n: int, how: str) -> Tensor:
    return torch.zeros(n, dtype=torch.int64, device=values.device).scatter_reduce(0, cell, values, how, include_self=False)


def _ranges(starts: Tensor, sizes: Tensor) -> Tensor:
    """Concatenated ranges [start, start + size)."""
    total = int(sizes.sum())
    first = torch.cumsum(sizes, 0) - sizes
    return torch.arange(total, device=starts.device) + torch.repeat_interleave(starts - first, sizes)
