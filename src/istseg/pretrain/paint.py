"""Pictures of tissue: nucleus stain, membrane and cytoplasm stains, transcripts, camera. Every property is drawn at random, per picture, stain or cell."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from istseg.grid import DEFAULT_WORKING_UM
from istseg.pretrain.randomness import Draw, blur, haze, per_image
from istseg.pretrain.tissue import MAX_CELLS

KINDS = {"ring": 0.30, "cytoplasm": 0.24, "nucleus and cytoplasm": 0.15, "neuropil": 0.08, "strands": 0.09, "nearly empty": 0.06, "puncta": 0.08}
"""Kinds of stains and how often each is drawn."""
RING, CYTOPLASM, NUCLEUS_AND_CYTOPLASM, NEUROPIL, STRANDS, NEARLY_EMPTY, PUNCTA = range(len(KINDS))
CELL_TYPES = 5
GRANULE_PX = (3.0, 8.0, 14.0)
TRANSCRIPTS_PER_UM2 = (0.06, 5.0)
_PX_UM2 = DEFAULT_WORKING_UM**2


@dataclass(frozen=True)
class Scene:
    """What is painted.

    Attributes
    ----------
    labels
        (B, S, S) int64 cells.
    nuclei
        (B, S, S) bool.
    """

    labels: Tensor
    nuclei: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(B, S)."""
        return self.labels.shape[0], self.labels.shape[1]

    @property
    def cell(self) -> Tensor:
        """(B, S, S) float: 1 in cells."""
        return (self.labels > 0).float()

    def spread(self, per_cell: Tensor) -> Tensor:
        """Values (B, MAX_CELLS + 1) of cells, column 0 the background's → (B, S, S)."""
        return per_cell.gather(1, self.labels.flatten(1)).reshape(self.labels.shape)

    def mirrored(self) -> Scene:
        """Another section: the next picture of the batch, mirrored."""
        return Scene(self.labels.roll(1, 0).flip(1), self.nuclei.roll(1, 0).flip(1))


@dataclass(frozen=True)
class Controls:
    """For controlled tests; the defaults paint at random.

    Attributes
    ----------
    clean
        Complete contours, clear stains, little noise.
    kinds
        (K,) kind of each stain.
    transcripts_per_um2
        Mean density.
    gone
        (B, MAX_CELLS + 1) share of each cell's contour that is missing in all ring stains, its neighbours' side included, and (same shape) where it begins, as
        shares of a turn.
    own_light
        Mean autofluorescence, 1 is as bright as a contour; None: at random.
    """

    clean: bool = False
    kinds: tuple[int, ...] | None = None
    transcripts_per_um2: float | None = None
    own_light: float | None = None
    gone: tuple[Tensor, Tensor] | None = None


RANDOM = Controls()


@torch.no_grad()
def paint(draw: Draw, scene: Scene, membranes: int, controls: Controls = RANDOM) -> tuple[Tensor, Tensor]:
    """Paint a batch.

    Parameters
    ----------
    draw
        Random numbers and device.
    scene
        Cells and nuclei.
    membranes
        Number of stains beside the nucleus stain, 0…5.

    Returns
    -------
    stains
        (B, 1 + membranes, S, S) normalised to its own 1st and 99th percentile, nucleus stain first.
    counts
        (B, S, S) transcripts per working pixel.
    """
    nucleus, processes = paint_nuclei(draw, scene), draw_processes(draw, *scene.shape)
    light = [nucleus]
    if membranes:
        kinds = controls.kinds or None
        batch = scene.shape[0]
        drawn = draw.choice(tuple(KINDS.values()), batch * membranes).reshape(batch, membranes)
        of_stain = torch.tensor(kinds, device=draw.device).expand(batch, -1) if kinds else drawn
        types = _cell_types(draw, scene)
        light += [paint_stain(draw, scene, of_stain[:, i], types, nucleus, processes, controls) for i in range(membranes)]
    stains = torch.cat(light, 1) + paint_own_light(draw, *scene.shape, membranes, controls)
    if membranes > 1 and not controls.clean:
        stains = torch.cat((stains[:, :1], _bleed(draw, stains[:, 1:])), 1)
    return _normalised(draw, camera(draw, stains, controls.clean), controls.clean), paint_transcripts(draw, scene, processes, controls)


def paint_nuclei(draw: Draw, scene: Scene) -> Tensor:
    """(B, 1, S, S) light of the nucleus stain: textured nuclei, some out of focus, nuclei of other planes, haze."""
    n, side = scene.shape
    inside = scene.nuclei.float()
    brightness = _of_cells(torch.exp(draw.uniform(0.1, 0.5, n, 1) * draw.normal(n, MAX_CELLS + 1)))
    texture = 1 + per_image(draw.uniform(0.02, 0.3, n)) * draw.field(n, side, 4) + per_image(draw.uniform(0, 0.18, n)) * draw.field(n, side, 2.2)
    spots = (draw.field(n, side, 3.2) > 1.6) * per_image(draw.uniform(0, 1.2, n) * draw.chance(0.5, n))
    nucleoli = (draw.field(n, side, 5) > 1.7) * per_image(draw.uniform(0, 0.7, n))
    sharp = inside * scene.spread(brightness) * (texture + spots - nucleoli).clamp_min(0.15)
    soft = blur(torch.stack((inside, sharp), 1), draw.uniform(1.6, 4.0, n))
    shape = (n, MAX_CELLS + 1)
    blurred = scene.spread(torch.where(draw.chance(0.15, *shape), draw.uniform(0.3, 0.9, *shape), draw.uniform(0, 0.15, *shape)))
    light = sharp * (0.55 + 0.45 * soft[:, 0]) * (1 - blurred) + soft[:, 1] * blurred
    light = light + _other_plane(draw, scene.mirrored())
    light = blur(light[:, None], draw.log_uniform(0.45, 3.2, n))
    light = light + haze(light, draw.uniform(10, 40, n)) * draw.uniform(0, 1.0, n, 1, 1, 1) + haze(light, 14.0) * draw.uniform(0, 0.6, n, 1, 1, 1)
    return light + draw.uniform(0, 0.1, n, 1, 1, 1) * blur(scene.cell[:, None], 2.0)


def _other_plane(draw: Draw, other: Scene) -> Tensor:
    """(B, S, S) light of nuclei above or below: clearly fainter and more blurred than any nucleus of the plane, so that the two can be told apart."""
    n = other.shape[0]
    shown = _of_cells(draw.chance(draw.uniform(0, 0.25, n, 1), n, MAX_CELLS + 1) * draw.uniform(0.1, 0.55, n, MAX_CELLS + 1))
    return blur((other.nuclei * other.spread(shown))[:, None], draw.uniform(3.5, 8, n))[:, 0] * per_image(draw.unit(n) * 0.8)


def paint_stain(draw: Draw, scene: Scene, kind: Tensor, types: Tensor, nucleus: Tensor, processes: Tensor, controls: Controls) -> Tensor:
    """(B, 1, S, S) light of one stain.

    Parameters
    ----------
    kind
        (B,) index of `KINDS`.
    types
        (B, MAX_CELLS + 1) type of each cell; types take a marker more or less.
    nucleus
        (B, 1, S, S) light of the nucleus stain, which can leak into this one.
    processes
        (B, S, S) of `draw_processes`.
    """
    n, side = scene.shape
    cell, inside = scene.cell, scene.nuclei.float()
    clean = controls.clean

    def of(*kinds: int) -> Tensor:
        return sum((kind == k).float() for k in kinds)

    def amount(low: float, high: float, probability: float = 1.0) -> Tensor:
        return draw.uniform(low, high, n) * draw.chance(probability, n)

    level = scene.spread(_marker_levels(draw, n, types, clean))
    contour, near_contour = _contour(draw, scene, controls)
    rough = 1 + per_image(amount(0, 0.5)) * draw.field(n, side, 3) + per_image(amount(0, 0.3)) * draw.field(n, side, 9)
    contour = blur((contour * rough.clamp_min(0.05))[:, None], draw.uniform(0.4, 1.1, n))[:, 0]
    grain = (1 + per_image(draw.uniform(0.05, 0.35, n)) * draw.field(n, side, 2.5) + per_image(amount(0, 0.35)) * draw.field(n, side, 10)).clamp_min(0.05)
    body = cell * grain * (1 - per_image(draw.uniform(-0.1, 0.95, n)) * inside)
    around_nucleus = blur(inside[:, None], draw.uniform(4, 9, n))[:, 0] * cell
    threads = torch.exp(-((draw.field(n, side, 9) / 0.22) ** 2)) + torch.exp(-((draw.field(n, side, 5) / 0.2) ** 2))
    light = level * (
        contour * per_image(of(RING) * amount(0.8, 1.6) + of(CYTOPLASM) * amount(0, 0.8, 0.6) + of(STRANDS) * 0.7 + of(NUCLEUS_AND_CYTOPLASM, PUNCTA) * 0.1)
        + body * per_image(of(RING) * amount(0, 0.4) + of(CYTOPLASM) + of(STRANDS) * amount(0.1, 0.5) + of(NUCLEUS_AND_CYTOPLASM) * amount(0.05, 0.6))
        + inside * grain * per_image(of(NUCLEUS_AND_CYTOPLASM) * amount(0.5, 1.1))
        + around_nucleus * per_image(of(NUCLEUS_AND_CYTOPLASM) * amount(0, 0.5) + of(CYTOPLASM) * amount(0, 0.4, 0.4))
        + threads * cell * (1 - inside) * per_image(of(STRANDS) * amount(0.3, 1.0))
        + cell * per_image(of(NEARLY_EMPTY) * amount(0.02, 0.25))
    )
    zone = torch.sigmoid((draw.field(n, side, 180) - per_image(draw.uniform(-2.5, 0.8, n))) * 3)
    between = (1 - cell) * (0.5 + 0.5 * grain * (1 + 0.5 * threads)) + 0.25 * cell * (1 - inside)
    light = light + zone * between * per_image(of(NEUROPIL) * amount(0.4, 1.0))
    # Matrix, neuropil or glass that takes the stain too.
    light = light + (0.3 + 0.7 * zone) * between * per_image(of(RING, CYTOPLASM, NUCLEUS_AND_CYTOPLASM, STRANDS) * amount(0, 0.35, 0.35))
    light = light + processes * (1 - inside) * per_image(amount(0.3, 1.2, 0.35))
    dots = draw.chance(per_image(draw.log_uniform(0.002, 0.05, n)), n, side, side) * torch.exp(0.8 * draw.normal(n, side, side))
    dots = blur(dots[:, None], draw.uniform(0.6, 1.3, n))[:, 0] * 6
    dotted = (
        of(PUNCTA) * amount(0.3, 1.0) + of(NEUROPIL) * amount(0, 0.5) + of(RING) * amount(0, 0.15) + of(CYTOPLASM) * amount(0, 0.1) + of(NEARLY_EMPTY) * 0.06
    )
    light = light + dots * (0.15 + near_contour * 1.2 + (1 - cell) * per_image(draw.unit(n) * 0.8)) * zone * (1 - 0.9 * inside) * per_image(dotted)
    light = light + (draw.field(n, side, 12) > 2.7) * per_image(amount(0, 2.0, 0.25))
    if not clean:
        light = light * torch.where(per_image(draw.chance(0.5, n)), 0.25 + 0.75 * zone, 1.0)
    light = blur(light[:, None], draw.log_uniform(0.35, 2.6, n))
    light = light + haze(light, draw.uniform(8, 40, n)) * draw.uniform(0, 0.7, n, 1, 1, 1)
    return light + nucleus * amount(0, 0.35, 0.35)[:, None, None, None]


def paint_own_light(draw: Draw, n: int, side: int, membranes: int, controls: Controls = RANDOM) -> Tensor:
    """(B, 1 + membranes, S, S) autofluorescence: granules and clumps (lipofuscin, elastin, red blood cells), the same ones in every stain, in or out of cells.

    They hardly shine in the nucleus stain, and no transcript goes with them: that tells them from cells.
    """
    stain_gain = torch.cat((draw.uniform(0, 0.12, n, 1), draw.uniform(0.4, 1.2, n, membranes)), 1)
    sizes = torch.stack([draw.field(n, side, grain_px) for grain_px in GRANULE_PX])
    granules = sizes[draw.integers(0, len(GRANULE_PX), n), torch.arange(n, device=draw.device)]
    # Packed side by side, or single ones.
    granules = torch.where(per_image(draw.chance(0.5, n)), granules.abs(), (granules - per_image(draw.uniform(0.3, 1.6, n))).clamp_min(0))
    granules = granules / granules.mean((1, 2), keepdim=True).clamp_min(0.1)
    everywhere = per_image(draw.chance(0.5, n)) | (draw.field(n, side, 120) > per_image(draw.uniform(-1, 1, n)))
    amount = draw.log_uniform(0.15, 1.5, n) * draw.chance(0.22, n)
    if controls.own_light is not None or controls.clean:
        amount, everywhere = torch.full_like(amount, controls.own_light or 0.0), torch.ones_like(everywhere)
    return (granules * everywhere * per_image(amount))[:, None] * stain_gain[..., None, None]


def paint_transcripts(draw: Draw, scene: Scene, processes: Tensor, controls: Controls = RANDOM) -> Tensor:
    """(B, S, S) transcripts per pixel, all genes together: in cells, diffused, of other planes, ambient, in processes and clumps without a cell."""
    n, side = scene.shape
    cell, inside = scene.cell, scene.nuclei.float()
    fixed = controls.transcripts_per_um2
    density = draw.log_uniform(*TRANSCRIPTS_PER_UM2, n) if fixed is None else torch.full((n,), fixed, device=draw.device)
    silent = draw.chance(draw.uniform(0, 0.12, n, 1), n, MAX_CELLS + 1)
    per_cell = torch.exp(draw.uniform(0.2, 0.7, n, 1) * draw.normal(n, MAX_CELLS + 1)) * torch.where(silent, 0.08, 1.0)
    rate = scene.spread(_of_cells(per_cell))
    in_nucleus = torch.where(draw.chance(0.5, n), draw.log_uniform(0.3, 1.0, n), draw.log_uniform(1.0, 2.5, n))
    rate = rate * (1 + (per_image(in_nucleus) - 1) * inside)
    around = blur(inside[:, None], draw.uniform(4, 9, n))[:, 0]
    rate = rate * (1 + per_image(draw.uniform(0, 2.0, n) * draw.chance(0.4, n)) * around)
    rate = rate * torch.exp(per_image(draw.uniform(0, 0.5, n)) * draw.field(n, side, 5))
    rate = rate * torch.where(per_image(draw.chance(0.5, n)), blur(cell[:, None], 2.2)[:, 0] ** 2, 1.0)
    rate = rate * (1 - per_image(draw.uniform(0, 0.25, n))) + blur(rate[:, None], draw.uniform(2, 7, n))[:, 0] * per_image(draw.uniform(0, 0.3, n))
    other = scene.mirrored()
    shown = draw.chance(draw.uniform(0, 0.2, n, 1), n, MAX_CELLS + 1) * draw.uniform(0.1, 0.8, n, MAX_CELLS + 1) * draw.chance(0.4, n, 1)
    rate = rate + blur(other.spread(_of_cells(shown))[:, None], 1.5)[:, 0]
    rate = rate + _without_cell(draw, processes) * (1 - 0.5 * cell)
    ambient = draw.log_uniform(0.003, 0.06, n) + draw.chance(0.25, n) * draw.uniform(0.05, 0.3, n)
    ambient = per_image(ambient * (0.5 if controls.clean else 1.0)) * torch.exp(0.6 * draw.field(n, side, 40)).clamp(max=4)
    clumps = 1 + per_image(draw.uniform(0, 8, n) * draw.chance(0.35, n)) * (draw.field(n, side, 12) - 1.1).clamp(0, 1)
    rate = rate + ambient * clumps * (1 - 0.5 * cell)
    rate = rate * torch.exp(per_image(draw.uniform(0, 0.4, n)) * draw.field(n, side, 200))
    if fixed is None:
        density = density * draw.uniform(0.3, 1.0, n)
        rate = rate * _detected(draw, n, side)
    return draw.poisson((rate * per_image(density) * _PX_UM2).clamp_max(50))


def _without_cell(draw: Draw, processes: Tensor) -> Tensor:
    """(B, S, S) relative density of transcripts where no cell of this plane is: processes, and patches as large as a cell, as dense as one."""
    n, side = processes.shape[:2]
    processes = processes * per_image(draw.uniform(0.3, 2.0, n) * draw.chance(0.4, n))
    patches = torch.sigmoid((draw.field(n, side, 15) - per_image(draw.uniform(1.5, 2.2, n))) * 6)
    return processes + patches * per_image(draw.uniform(0.2, 1.2, n) * draw.chance(0.35, n))


def draw_processes(draw: Draw, n: int, side: int) -> Tensor:
    """(B, S, S) 0…1: processes of cells of other planes, fibres, vessels, which stains and transcripts show alike and which are no cell of this plane.

    They are curved strands of 1 to 3 µm width, where a broad field is near 0, cut into pieces by another field.
    """
    line = torch.exp(-((draw.field(n, side, 45) / per_image(draw.uniform(0.05, 0.14, n))) ** 2))
    return line * torch.sigmoid((draw.field(n, side, 40) - per_image(draw.uniform(0.0, 1.2, n))) * 6)


def _detected(draw: Draw, n: int, side: int) -> Tensor:
    """(B, S, S) 1, or 0 beyond a straight edge: a field of view without transcripts, six in a hundred."""
    edge = draw.integers(0, side, n)
    place = torch.arange(side, device=draw.device)
    beyond = (per_image(draw.chance(0.06, n)) & (place[None, None] > per_image(edge))).expand(n, side, side)
    return torch.where(per_image(draw.chance(0.5, n)), ~beyond, ~beyond.transpose(1, 2)).float()


def _of_cells(values: Tensor) -> Tensor:
    """The same with 0 for the background."""
    values = values.float().clone()
    values[:, 0] = 0
    return values


def _cell_types(draw: Draw, scene: Scene) -> Tensor:
    """(B, MAX_CELLS + 1) type of each cell: neighbours tend to share one."""
    n, side = scene.shape
    zones = ((draw.field(n, side, 90) + 1.6) / 0.8).long().clamp(0, CELL_TYPES - 1)
    of_place = torch.zeros(n, MAX_CELLS + 1, dtype=torch.long, device=draw.device).scatter(1, scene.labels.flatten(1), zones.flatten(1))
    shape = (n, MAX_CELLS + 1)
    return torch.where(draw.chance(0.35, *shape), draw.integers(0, CELL_TYPES, *shape), of_place)


def _marker_levels(draw: Draw, n: int, types: Tensor, clean: bool) -> Tensor:
    """(B, MAX_CELLS + 1) how much of a stain each cell takes: some types hardly any."""
    positive = 0.97 if clean else torch.where(draw.chance(0.35, n, 1), 1.0, 0.62)
    gain = torch.where(draw.chance(positive, n, CELL_TYPES), draw.uniform(0.6, 1.2, n, CELL_TYPES), draw.uniform(0, 0.25, n, CELL_TYPES))
    alike = draw.chance(0.0 if clean else 0.25, n, 1)
    gain = torch.where(alike, gain[:, :1], gain)
    spread = 0.15 if clean else draw.uniform(0.03, 0.4, n, 1)
    return _of_cells(gain.gather(1, types) * torch.exp(spread * draw.normal(n, MAX_CELLS + 1)))


def _contour(draw: Draw, scene: Scene, controls: Controls) -> tuple[Tensor, Tensor]:
    """(B, S, S) contours, patchy and broken; (B, S, S) all pixels near a contour."""
    labels, (n, side) = scene.labels, scene.shape
    edge = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (1, 2):
        differs = labels.narrow(axis, 1, side - 1) != labels.narrow(axis, 0, side - 1)
        edge.narrow(axis, 1, side - 1).logical_or_(differs)
        edge.narrow(axis, 0, side - 1).logical_or_(differs)
    thin = (edge & (labels > 0)).float()
    numbers = labels.float()[:, None]
    wide = (F.max_pool2d(numbers, 5, 1, 2) != numbers) | (-F.max_pool2d(-numbers, 5, 1, 2) != numbers)
    wide = (wide[:, 0] & (labels > 0)).float()
    contour = torch.where(per_image(draw.chance(0.5, n)), thin, wide)
    if not controls.clean:
        patchy = torch.sigmoid((draw.field(n, side, 14) - per_image(draw.uniform(-2.6, 0.4, n))) * 4)
        contour = contour * torch.where(per_image(draw.chance(0.7, n)), patchy, 1.0)
        shape = (n, MAX_CELLS + 1)
        share = draw.chance(draw.uniform(0, 0.7, n, 1), *shape) * draw.uniform(0.05, 0.95, *shape)
        contour = contour * _kept(scene, share, draw.unit(*shape))
    if controls.gone is not None:
        # The neighbour's side of the line goes too, or the contour would still be there.
        gone = F.max_pool2d((1 - _kept(scene, *controls.gone)) * wide, 5, 1, 2)
        contour = contour * (1 - gone)
    return contour, wide


def _kept(scene: Scene, share: Tensor, start: Tensor) -> Tensor:
    """(B, S, S) 0 in the sector [start, start + share) of a turn around each cell's centre, else 1."""
    labels, (n, side) = scene.labels, scene.shape
    flat = labels.flatten(1)
    place = torch.arange(side, device=labels.device, dtype=torch.float32)
    offsets = []
    area = torch.zeros(n, MAX_CELLS + 1, device=labels.device).scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32)).clamp_min(1)
    for axis in (place[:, None].expand(side, side), place[None].expand(side, side)):
        values = axis.flatten().expand(n, -1)
        mean = torch.zeros(n, MAX_CELLS + 1, device=labels.device).scatter_add_(1, flat, values) / area
        offsets.append(values - mean.gather(1, flat))
    turn = (torch.atan2(offsets[0], offsets[1]) / (2 * math.pi) - start.gather(1, flat)) % 1.0
    return (turn >= share.gather(1, flat)).reshape(labels.shape).float()


def _bleed(draw: Draw, stains: Tensor) -> Tensor:
    """Some stains show a part of their neighbour."""
    shape = (*stains.shape[:2], 1, 1)
    return stains + stains.roll(1, 1) * draw.uniform(0, 0.3, *shape) * draw.chance(0.25, *shape)


def camera(draw: Draw, light: Tensor, clean: bool = False) -> Tensor:
    """(B, C, S, S) grey values: uneven light, steps between fields of view, offset, shot noise and read noise."""
    n, channels, side, _ = light.shape
    shape = (n, channels, 1, 1)
    uneven = draw.field(n * channels, side, 300).reshape(light.shape).clamp(-2, 2) * 0.5
    uneven = uneven * draw.uniform(0, 0.35, *shape) + (0.0 if clean else _steps(draw, n, channels, side))
    light = light * (1 + uneven).clamp_min(0.2) + draw.log_uniform(0.01, 0.3, *shape)
    photons = draw.log_uniform(30, 3000, *shape) * (4 if clean else 1)
    light = light + (light / photons).sqrt() * draw.normal(*light.shape) + draw.log_uniform(0.001, 0.03, *shape) * draw.normal(*light.shape)
    return blur(light, torch.where(draw.chance(0.5, n, channels), draw.uniform(0.25, 0.6, n, channels), 0.05))


def _steps(draw: Draw, n: int, channels: int, side: int) -> Tensor:
    """(B, C, S, S) 0, or in one picture of eight a value of its own for each of the four fields of view that meet at a point."""
    place = torch.arange(side, device=draw.device)
    lower, right = (place > draw.integers(0, side, n, 1) for _ in range(2))
    field = 2 * lower.long()[:, :, None] + right.long()[:, None]
    values = draw.uniform(-0.3, 0.3, n, channels, 4) * draw.chance(0.125, n, 1, 1)
    return values.gather(2, field.flatten(1)[:, None].expand(-1, channels, -1)).reshape(n, channels, side, side)


def _normalised(draw: Draw, stains: Tensor, clean: bool) -> Tensor:
    """Each stain on its own; now and then all membrane stains together, as some pipelines do."""
    own = normalise(stains)
    if stains.shape[1] < 3 or clean:
        return own
    membranes = stains[:, 1:]
    shifted = membranes - membranes.amin((2, 3), keepdim=True) * 0.9
    joint = normalise(shifted.flatten(1, 2)[:, None])[:, 0].reshape(membranes.shape)
    together = draw.chance(0.12, len(stains), 1, 1, 1)
    return torch.cat((own[:, :1], torch.where(together, joint, own[:, 1:])), 1)


def normalise(images: Tensor) -> Tensor:
    """1st percentile → 0, 99th → 1 over the last two axes, estimated on every fourth pixel of either axis; not clipped; flat pictures become 0."""
    values = images[..., ::4, ::4].flatten(-2).sort(-1).values
    last = values.shape[-1] - 1
    low, high = (values[..., int(share * last)][..., None, None] for share in (0.01, 0.99))
    return torch.where(high - low > 1e-6, (images - low) / (high - low).clamp_min(1e-6), 0.0)
