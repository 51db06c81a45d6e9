"""Tissue as label images: cells, nuclei and flow targets, in batches on the device. Lengths are in working pixels of 0.253 µm unless a name says µm."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from istseg.grid import DEFAULT_WORKING_UM
from istseg.network.flows import flow_targets
from istseg.pretrain.randomness import Draw, per_image

PX_PER_UM = 1 / DEFAULT_WORKING_UM
MAX_CELLS = 1000
"""Most cells of one tissue."""
FLOW_STORED = 127
"""Unit flows are kept as int8 times this."""

_MARGIN = 24
_TILE = 32
_NEAREST = 26
"""A pixel's cell is sought among so many seeds nearest its tile of 32 pixels."""
_ROUNDS = 14
_MIN_CELL_PX = 90
_RADIUS_PX = (9.0, 62.0)
_HALF_AXIS_PX = 78.0
_LOBES = (2, 3, 4, 5)
_FAR = 1e6


@dataclass(frozen=True)
class Family:
    """A kind of tissue; pairs are ranges. Set by eye against public MERSCOPE and CosMx pictures; nothing was fitted.

    Attributes
    ----------
    radius_um, radius_spread
        Of a cell (geometric mean of the half-axes), and its log-normal spread.
    elongation
        Ratio of the half-axes.
    spacing
        Least distance of two cells in units of the sum of their half-axes: below 1 they press on each other.
    reach
        How far a cell grows beyond its ellipse where it has room.
    lobes
        Amplitude of irregular outlines.
    nucleus
        Radius of the nucleus as a share of the cell's.
    no_nucleus, two_nuclei, small_cell, gaps
        Probabilities: of a cell, and (gaps) that the tissue has empty areas.
    coherence
        1: neighbours point the same way.
    """

    radius_um: tuple[float, float]
    radius_spread: float
    elongation: tuple[float, float]
    spacing: tuple[float, float]
    reach: tuple[float, float]
    lobes: tuple[float, float]
    nucleus: tuple[float, float]
    no_nucleus: float
    two_nuclei: float
    small_cell: float
    gaps: float
    coherence: float


FAMILIES: dict[str, Family] = {
    "epithelium": Family((3.8, 8.0), 0.14, (1.0, 1.6), (0.72, 0.9), (1.25, 1.7), (0.0, 0.06), (0.45, 0.75), 0.06, 0.02, 0.05, 0.3, 0.6),
    "brain": Family((3.2, 7.0), 0.25, (1.0, 1.5), (1.0, 2.6), (0.95, 1.1), (0.02, 0.14), (0.62, 0.92), 0.06, 0.0, 0.3, 0.2, 0.3),
    "fibroblast": Family((3.0, 5.0), 0.22, (1.9, 4.2), (0.8, 1.7), (0.95, 1.25), (0.0, 0.12), (0.5, 0.85), 0.12, 0.01, 0.15, 0.3, 0.85),
    "lymphoid": Family((2.7, 4.2), 0.12, (1.0, 1.3), (0.76, 1.0), (1.02, 1.35), (0.0, 0.07), (0.72, 0.93), 0.05, 0.0, 0.05, 0.2, 0.2),
    "hepatocyte": Family((7.5, 13.0), 0.13, (1.0, 1.4), (0.74, 0.95), (1.1, 1.5), (0.02, 0.1), (0.34, 0.52), 0.13, 0.22, 0.02, 0.12, 0.3),
    "mixed stroma": Family((3.2, 10.0), 0.38, (1.0, 2.6), (0.74, 1.4), (0.95, 1.4), (0.0, 0.14), (0.45, 0.85), 0.08, 0.03, 0.15, 0.4, 0.5),
    "lobed": Family((4.0, 9.0), 0.25, (1.0, 2.0), (0.85, 1.8), (0.9, 1.05), (0.14, 0.36), (0.38, 0.65), 0.1, 0.02, 0.2, 0.3, 0.3),
    "duct": Family((3.2, 6.5), 0.16, (1.2, 2.4), (0.7, 0.88), (1.2, 1.6), (0.0, 0.06), (0.45, 0.75), 0.06, 0.01, 0.08, 1.0, 0.95),
}
NAMES = tuple(FAMILIES)


@dataclass
class Tissues:
    """A batch of square tissues.

    Attributes
    ----------
    labels
        (N, S, S) int16, 0 is background.
    nuclei
        (N, S, S) uint8: 0, or 1 and 2 for a cell's first and second nucleus.
    flow
        (N, 2, S, S) int8: unit flow (y, x) times `FLOW_STORED`.
    """

    labels: Tensor
    nuclei: Tensor
    flow: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        return self.labels.shape[-1]

    def put(self, at: Tensor, new: Tissues) -> None:
        """Replace some tissues."""
        self.labels[at], self.nuclei[at], self.flow[at] = new.labels, new.nuclei, new.flow

    @classmethod
    def join(cls, parts: list[Tissues]) -> Tissues:
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))


@torch.no_grad()
def make_tissues(draw: Draw, n: int, side: int, families: Tensor | None = None) -> Tissues:
    """Draw tissues.

    Parameters
    ----------
    draw
        Random numbers and device.
    n, side
        How many, and their side in working pixels, a multiple of 32.
    families
        (n,) int64 index into `NAMES`; default: at random. Three in ten have a second family in a part of the area.
    """
    families = draw.integers(0, len(NAMES), n) if families is None else families
    cells, empty = _seeds(draw, side, families)
    warp_px = per_image(draw.log_uniform(0.5, 4.5, n))
    place = torch.arange(side, device=draw.device, dtype=torch.float32)
    y, x = (axis + warp_px * (draw.field(n, side, 26) + 0.35 * draw.field(n, side, 9) * draw.unit(n, 1, 1)) for axis in (place[:, None], place[None]))
    labels = _cells(draw, cells, y, x).masked_fill(empty, 0)
    # Nuclei are smoother than cells: half of the warp.
    nuclei = _nuclei(draw, cells, labels, (y + place[:, None]) / 2, (x + place[None]) / 2)
    flow, heat = flow_targets(labels)
    # Parts that are not connected with the centre get no heat.
    labels = labels * (heat > 0)
    area = torch.zeros(n, MAX_CELLS + 1, device=draw.device).scatter_add_(1, labels.flatten(1), torch.ones(n, side * side, device=draw.device))
    labels = labels * (area >= _MIN_CELL_PX).gather(1, labels.flatten(1)).reshape(labels.shape)
    inside = labels > 0
    return Tissues(labels.to(torch.int16), nuclei * inside, (flow * inside[:, None] * FLOW_STORED).round().to(torch.int8))


def _seeds(draw: Draw, side: int, families: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Tables (n, MAX_CELLS) of the cells' properties, `on` for those that exist; (n, S, S) bool of empty areas."""
    n, device = len(families), draw.device
    table = torch.tensor([[v for value in astuple(f) for v in (value if isinstance(value, tuple) else (value,))] for f in FAMILIES.values()], device=device)
    second = draw.integers(0, len(NAMES), n)
    zone = draw.field(n, side, side / 2.3)
    zone = (zone > per_image(draw.uniform(0.2, 1.0, n))) & per_image(draw.chance(0.3, n))
    gaps = draw.field(n, side, 60) + 0.7 * draw.field(n, side, 28) * draw.unit(n, 1, 1)
    empty = gaps / gaps.std((1, 2), keepdim=True) > per_image(_gap_level(draw, families, table))

    rows = table[torch.stack((families, second))]
    share = draw.unit(2, n, rows.shape[-1])
    zoom = draw.log_uniform(0.78, 1.3, n)
    between = rows[..., :-1] + (rows[..., 1:] - rows[..., :-1]) * share[..., :-1]
    between_log = rows[..., :-1].clamp_min(1e-6) * (rows[..., 1:] / rows[..., :-1].clamp_min(1e-6)).clamp_min(1e-6) ** share[..., :-1]
    of_zone = {
        "radius": between_log[..., 0] * PX_PER_UM * zoom,
        "spread": rows[..., 2],
        "elongation": between[..., 3],
        "spacing": between_log[..., 5],
        "reach": between[..., 7],
        "lobe": between[..., 9],
        "nucleus": between[..., 11],
        "no_nucleus": rows[..., 13],
        "two_nuclei": rows[..., 14],
        "small": rows[..., 15] * share[..., 15] * 1.3,
        "coherence": rows[..., 17],
    }
    # As many candidates as can find room, so that the densest tissue is full: 2600 for 640 px.
    candidates = max(MAX_CELLS, int(2600 * (side / 640) ** 2))
    at = draw.uniform(-_MARGIN, side + _MARGIN, n, candidates, 2)
    pixel = at.clamp(0, side - 1).long()
    image = torch.arange(n, device=device)[:, None]
    here = (image, pixel[..., 0], pixel[..., 1])
    q = {name: values[zone[here].long(), image] for name, values in of_zone.items()}
    small = draw.chance(q["small"], n, candidates)
    radius = q["radius"] * torch.exp(q["spread"] * draw.normal(n, candidates))
    radius = torch.where(small, torch.minimum(PX_PER_UM * draw.uniform(2.2, 3.8, n, candidates) * zoom[:, None], radius), radius).clamp(*_RADIUS_PX)
    elongation = 1 + (q["elongation"] - 1) * draw.uniform(0.5, 1.3, n, candidates)
    elongation = torch.where(small, draw.uniform(1, 2.4, n, candidates), elongation).clamp(1, 4.5)
    elongation = torch.minimum(elongation, (_HALF_AXIS_PX / radius).clamp_min(1) ** 2)
    angle = _angles(draw, side, families, gaps, here) + (1 - q["coherence"]) * math.pi * draw.uniform(-1, 1, n, candidates) + 0.15 * draw.normal(n, candidates)
    priority = draw.unit(n, candidates) + 0.6 * draw.unit(n, 1) * (radius / radius.amax(1, keepdim=True))
    order = priority.argsort(1, descending=True)
    cells = q | {
        "y": at[..., 0],
        "x": at[..., 1],
        "long": radius * elongation.sqrt(),
        "short": radius / elongation.sqrt(),
        "angle": angle,
        "small": small.float(),
        "blocked": (empty[here] & ((at > 0) & (at < side - 1)).all(-1)).float(),
    }
    cells = {name: values.gather(1, order) for name, values in cells.items()}
    placed = _room(cells)
    order = torch.argsort(placed.int(), dim=1, descending=True, stable=True)[:, :MAX_CELLS]
    cells = {name: values.gather(1, order) for name, values in (cells | {"on": placed.float()}).items()}
    shape = (n, MAX_CELLS)
    cells["reach"] = cells["reach"] * (1 + 0.06 * draw.normal(*shape))
    cells["nucleus"] = torch.where(cells["small"] > 0, draw.uniform(0.6, 0.92, *shape), cells["nucleus"] * torch.exp(0.1 * draw.normal(*shape)))
    size = cells["lobe"] * draw.uniform(0.4, 1.3, *shape)
    return cells | _waves(draw, {i: size * draw.normal(*shape).abs() * 1.3 / i**0.7 for i in _LOBES}), empty


def _gap_level(draw: Draw, families: Tensor, table: Tensor) -> Tensor:
    """(n,) level above which the field of gaps is empty; far above it where a tissue has none."""
    n = len(families)
    level = torch.where(draw.chance(table[families, 16], n), draw.uniform(0.55, 1.6, n), 9.0)
    # Sinusoids and lumens of the liver.
    liver = (families == NAMES.index("hepatocyte")) & (level < 8)
    return torch.where(liver, draw.uniform(0.3, 1.1, n), level)


def _angles(draw: Draw, side: int, families: Tensor, gaps: Tensor, here: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Direction of each candidate: a broad field, or along or across the borders of gaps (ducts, and three in ten of the others)."""
    n = len(families)
    broad = (draw.field(n, side, side / 2) * 1.6)[here]
    slope_y, slope_x = torch.gradient(F.avg_pool2d(gaps[:, None], 9, 1, 4)[:, 0], dim=(1, 2))
    along = torch.atan2(slope_x, -slope_y)[here]
    turned = along + math.pi / 2 * draw.chance(0.5, n, 1)
    return torch.where((families == NAMES.index("duct"))[:, None] | draw.chance(0.3, n, 1), turned, broad)


def _room(cells: dict[str, Tensor]) -> Tensor:
    """(n, k) bool: candidates that are placed. Earlier ones go first; a later one too near to a placed one is dropped. In parallel rounds."""
    dy, dx = (cells[axis][:, :, None] - cells[axis][:, None] for axis in ("y", "x"))
    cos, sin = torch.cos(cells["angle"])[:, :, None], torch.sin(cells["angle"])[:, :, None]
    long, short = cells["long"], cells["short"]
    distance = ((cos * dx + sin * dy) / (long[:, :, None] + short[:, None])) ** 2 + ((cos * dy - sin * dx) / (short[:, :, None] + short[:, None])) ** 2
    near = distance < torch.minimum(cells["spacing"][:, :, None], cells["spacing"][:, None]) ** 2
    near = (near | near.transpose(1, 2)).tril(-1).to(torch.float32 if near.device.type == "cpu" else torch.float16)
    alive = cells["blocked"] == 0
    placed = torch.zeros_like(alive)

    def touched_by(others: Tensor) -> Tensor:
        return torch.bmm(near, others.to(near.dtype)[..., None])[..., 0] > 0

    for _ in range(_ROUNDS):
        new = alive & ~touched_by(alive)
        placed |= new
        alive = alive & ~new & ~touched_by(new)
    return placed


def _waves(draw: Draw, amplitude: dict[int, Tensor]) -> dict[str, Tensor]:
    """Cosine and sine parts of outlines' waves, by their number around the outline."""
    result = {}
    for i, size in amplitude.items():
        phase = draw.uniform(0, 2 * math.pi, *size.shape)
        result |= {f"cos{i}": size * torch.cos(phase), f"sin{i}": size * torch.sin(phase)}
    return result


def _score(dy: Tensor, dx: Tensor, cell: dict[str, Tensor]) -> Tensor:
    """Distance of a place from a wavy ellipse's centre; 1 on its outline."""
    cos, sin = torch.cos(cell["angle"]), torch.sin(cell["angle"])
    u, v = (cos * dx + sin * dy) / cell["long"], (cos * dy - sin * dx) / cell["short"]
    rho = (u * u + v * v).sqrt().clamp_min(1e-4)
    cos1, sin1 = u / rho, v / rho
    outline, cos_i, sin_i = torch.ones_like(rho), cos1, sin1
    for i in _LOBES:
        cos_i, sin_i = cos_i * cos1 - sin_i * sin1, sin_i * cos1 + cos_i * sin1
        outline = outline + cell[f"cos{i}"] * cos_i + cell[f"sin{i}"] * sin_i
    return rho / outline.clamp_min(0.3)


def _cells(draw: Draw, cells: dict[str, Tensor], y: Tensor, x: Tensor) -> Tensor:
    """(n, S, S) int64 labels: each pixel goes to the cell in which it lies deepest; between two cells a gap may stay."""
    n, side = y.shape[:2]
    tiles = side // _TILE
    middle = torch.arange(tiles, device=y.device) * _TILE + _TILE / 2
    far_y = cells["y"][:, None, None] - middle[None, :, None, None]
    far_x = cells["x"][:, None, None] - middle[None, None, :, None]
    distance = (far_y**2 + far_x**2).sqrt() - 1.15 * cells["long"][:, None, None]
    distance = torch.where(cells["on"][:, None, None] > 0, distance, _FAR).reshape(n, tiles * tiles, MAX_CELLS)
    distance, index = distance.topk(_NEAREST, dim=2, largest=False)
    near = {name: values[:, None].expand(-1, tiles * tiles, -1).gather(2, index)[..., None] for name, values in cells.items()}
    score = _score(_tiled(y) - near["y"], _tiled(x) - near["x"], near).masked_fill((distance > _FAR / 2)[..., None], 99.0)
    depth, winner = score.topk(2, dim=2, largest=False)
    first = winner[:, :, :1]

    def of_winner(values: Tensor) -> Tensor:
        return values.expand(-1, -1, -1, _TILE * _TILE).gather(2, first)[:, :, 0]

    gap_px = torch.where(draw.chance(0.45, n), draw.uniform(0, 2.5, n), 0.0)
    radius = of_winner((near["long"] * near["short"]).sqrt())
    inside = (depth[:, :, 0] < of_winner(near["reach"])) & ((depth[:, :, 1] - depth[:, :, 0]) * radius >= per_image(gap_px))
    labels = torch.where(inside, of_winner(index[..., None]) + 1, 0)
    return labels.reshape(n, tiles, tiles, _TILE, _TILE).permute(0, 1, 3, 2, 4).reshape(n, side, side)


def _tiled(image: Tensor) -> Tensor:
    """(n, S, S) → (n, tiles, 1, pixels of a tile)."""
    n, side = image.shape[:2]
    tiles = side // _TILE
    return image.reshape(n, tiles, _TILE, tiles, _TILE).permute(0, 1, 3, 2, 4).reshape(n, tiles * tiles, 1, _TILE * _TILE)


def _nuclei(draw: Draw, cells: dict[str, Tensor], labels: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(n, S, S) uint8: wavy ellipses inside the cells, none, one or two."""
    shape = cells["y"].shape
    drawn = draw.unit(*shape)
    none, two = drawn < cells["no_nucleus"], drawn > 1 - cells["two_nuclei"]
    radius = cells["nucleus"] * (cells["long"] * cells["short"]).sqrt() * torch.where(two, 0.74, 1.0)
    elongation = (cells["long"] / cells["short"]) ** draw.uniform(0.15, 0.8, *shape) * draw.uniform(1, 1.35, *shape)
    cos, sin = torch.cos(cells["angle"]), torch.sin(cells["angle"])
    owner = (labels - 1).clamp_min(0).flatten(1)
    nuclei = torch.zeros_like(labels, dtype=torch.uint8)
    for i, side in enumerate((0.42, -0.42)):
        off, to = draw.uniform(0, 0.75, *shape) * (1 - cells["nucleus"]).clamp_min(0.03), draw.uniform(0, 2 * math.pi, *shape)
        # Two nuclei lie side by side on the long axis, a single one anywhere.
        u = torch.where(two, side, off * torch.cos(to)) * cells["long"]
        v = torch.where(two, 0.0, off * torch.sin(to)) * cells["short"]
        nucleus = {
            "y": cells["y"] + sin * u + cos * v,
            "x": cells["x"] + cos * u - sin * v,
            "long": torch.minimum(radius * elongation.sqrt(), 0.94 * cells["long"]),
            "short": radius / elongation.sqrt(),
            "angle": cells["angle"] + 0.25 * draw.normal(*shape),
        } | _waves(draw, {k: 0.09 * draw.normal(*shape).abs() / (k - 1) for k in _LOBES})
        nucleus = {name: values.gather(1, owner).reshape(labels.shape) for name, values in nucleus.items()}
        has = (two if i else ~none).gather(1, owner).reshape(labels.shape)
        nuclei[(_score(y - nucleus["y"], x - nucleus["x"], nucleus) < 1) & (labels > 0) & has] = i + 1
    return nuclei
