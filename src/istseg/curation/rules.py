"""Which teacher cells and nuclei may teach [paper: Selection of consistent cell segmentations].

A cell *contains* a nucleus when at least `contain` (95 %) of the nucleus lies in it and *intersects* it when more than `intersect` (5 %) does. Kept are

1. cells that contain exactly one nucleus and intersect no other,
2. cells that intersect no nucleus,
3. nuclei that intersect at most one cell and are not inside a kept cell, as stand-ins for cells that the teacher missed;

of 2 and 3 those are dropped that lie by more than `max_background` (5 %) in background.

The rules work on a sparse table of overlaps, made from label images or from polygons. Cells of one teacher do not overlap each other in a label image.
Polygons may: a nucleus inside one cell can intersect others. The paper counts all of them in rule 3; the published package leaves out cells that contain
the nucleus (`count_containing=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

CELL_RULES = ("kept_one_nucleus", "kept_without_nucleus", "dropped_several_nuclei", "dropped_partial_nucleus", "dropped_background")
NUCLEUS_RULES = ("in_kept_cell", "kept_stand_in", "dropped_several_cells", "dropped_background")


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a nucleus and a cell that overlap.

    Attributes
    ----------
    nucleus, cell
        int64 (pairs,): positions in the lists of nuclei and cells.
    area
        float64 (pairs,): area of the intersection.
    nucleus_area, cell_area
        float64 (nuclei,), (cells,), same unit.

    """

    nucleus: np.ndarray
    cell: np.ndarray
    area: np.ndarray
    nucleus_area: np.ndarray
    cell_area: np.ndarray

    @property
    def fraction(self) -> np.ndarray:
        """(pairs,): share of the nucleus that lies in the cell."""
        return self.area / self.nucleus_area[self.nucleus]


def from_label_images(nuclei: np.ndarray, cells: np.ndarray) -> tuple[Overlaps, np.ndarray, np.ndarray]:
    """Overlaps of two label images of one shape.

    Returns
    -------
    overlaps, nucleus_ids, cell_ids
        Positions in the table are positions in the sorted ids.

    """
    nucleus_ids, nucleus_area = _ids(nuclei)
    cell_ids, cell_area = _ids(cells)
    both = (nuclei > 0) & (cells > 0)
    pair = np.searchsorted(nucleus_ids, nuclei[both]) * max(len(cell_ids), 1) + np.searchsorted(cell_ids, cells[both])
    pairs, area = np.unique(pair, return_counts=True)
    nucleus, cell = np.divmod(pairs, max(len(cell_ids), 1))
    return Overlaps(nucleus, cell, area.astype(float), nucleus_area.astype(float), cell_area.astype(float)), nucleus_ids, cell_ids


def from_polygons(nuclei: Sequence, cells: Sequence) -> Overlaps:
    """Overlaps of valid polygons, in any unit."""
    import shapely

    nuclei, cells = np.asarray(nuclei, object), np.asarray(cells, object)
    nucleus, cell = shapely.STRtree(cells).query(nuclei, predicate="intersects") if len(nuclei) and len(cells) else (np.empty(0, np.int64),) * 2
    area = shapely.area(shapely.intersection(nuclei[nucleus], cells[cell])) if len(nucleus) else np.empty(0)
    overlapping = area > 0
    areas = [np.asarray(shapely.area(shapes), float) if len(shapes) else np.empty(0) for shapes in (nuclei, cells)]
    return Overlaps(nucleus[overlapping], cell[overlapping], area[overlapping], *areas)


@dataclass
class Selection:
    """What the rules say of every object.

    Attributes
    ----------
    cell_rule
        (cells,) one of `CELL_RULES`.
    nucleus_rule
        (nuclei,) one of `NUCLEUS_RULES`.
    nucleus_of_cell
        (cells,) position of the only nucleus of cells `kept_one_nucleus`, else −1.

    """

    cell_rule: np.ndarray
    nucleus_rule: np.ndarray
    nucleus_of_cell: np.ndarray = field(repr=False)

    @property
    def kept_cells(self) -> np.ndarray:
        """Bool (cells,)."""
        return np.char.startswith(self.cell_rule, "kept") if len(self.cell_rule) else np.zeros(0, bool)

    @property
    def stand_ins(self) -> np.ndarray:
        """Bool (nuclei,)."""
        return self.nucleus_rule == "kept_stand_in"


def select(overlaps: Overlaps, contain: float = 0.95, intersect: float = 0.05, count_containing: bool = True) -> Selection:
    """Apply rules 1 to 3; `drop_background` is the second step."""
    n_cells, n_nuclei = len(overlaps.cell_area), len(overlaps.nucleus_area)
    contains, intersects = overlaps.fraction >= contain, overlaps.fraction > intersect
    contained = np.bincount(overlaps.cell[contains], minlength=n_cells)
    intersected = np.bincount(overlaps.cell[intersects], minlength=n_cells)
    cell_rule = np.full(n_cells, "dropped_partial_nucleus", "<U23")
    cell_rule[contained > 1] = "dropped_several_nuclei"
    cell_rule[(contained == 1) & (intersected == 1)] = "kept_one_nucleus"
    cell_rule[intersected == 0] = "kept_without_nucleus"
    nucleus_of_cell = np.full(n_cells, -1, np.int64)
    inside_kept = contains & (cell_rule[overlaps.cell] == "kept_one_nucleus")
    nucleus_of_cell[overlaps.cell[inside_kept]] = overlaps.nucleus[inside_kept]
    counted = intersects if count_containing else intersects & ~contains
    cells_of_nucleus = np.bincount(overlaps.nucleus[counted], minlength=n_nuclei)
    nucleus_rule = np.full(n_nuclei, "dropped_several_cells", "<U23")
    nucleus_rule[cells_of_nucleus <= 1] = "kept_stand_in"
    nucleus_rule[overlaps.nucleus[inside_kept]] = "in_kept_cell"
    return Selection(cell_rule, nucleus_rule, nucleus_of_cell)


def drop_background(
    selection: Selection, cell_background: np.ndarray, nucleus_background: np.ndarray, max_background: float = 0.05, max_background_nuclei: float | None = None
) -> Selection:
    """Drop cells without nucleus and stand-in nuclei that lie in background.

    Parameters
    ----------
    selection
        Of `select`; not changed.
    cell_background, nucleus_background
        (cells,), (nuclei,): share of each object's area that is background.
    max_background
        Largest share [paper: T_bg, 5 %].
    max_background_nuclei
        Another share for nuclei (the published package: 50 %); default: the same.

    """
    nuclei_limit = max_background if max_background_nuclei is None else max_background_nuclei
    cell_rule, nucleus_rule = selection.cell_rule.copy(), selection.nucleus_rule.copy()
    cell_rule[(cell_rule == "kept_without_nucleus") & (cell_background > max_background)] = "dropped_background"
    nucleus_rule[(nucleus_rule == "kept_stand_in") & (nucleus_background > nuclei_limit)] = "dropped_background"
    return Selection(cell_rule, nucleus_rule, selection.nucleus_of_cell)


def share_in(labels: np.ndarray, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(ids,): share of each label's area that lies in the mask; the ids are the sorted labels of the image."""
    place = np.searchsorted(ids, labels[labels > 0])
    area = np.bincount(place, minlength=len(ids))
    return np.bincount(place, weights=mask[labels > 0], minlength=len(ids)) / np.maximum(area, 1)


def curated_labels(cells: np.ndarray, nuclei: np.ndarray, kept_cells: np.ndarray, stand_ins: np.ndarray) -> np.ndarray:
    """Label image of kept cells and stand-in nuclei.

    Parameters
    ----------
    cells, nuclei
        int (y, x) teacher labels.
    kept_cells, stand_ins
        Ids to keep. Nuclei get their id plus the largest cell id of the image, so that ids never collide; where both lie, the cell wins.

    Returns
    -------
    int32 (y, x).

    """
    offset = int(cells.max(initial=0))
    result = np.where(np.isin(cells, kept_cells), cells, 0).astype(np.int32)
    stand_in = (result == 0) & np.isin(nuclei, stand_ins)
    result[stand_in] = nuclei[stand_in] + offset
    return result


def teaching_pixels(curated: np.ndarray, background: np.ndarray, teacher_labels: Sequence[np.ndarray]) -> np.ndarray:
    """Bool (y, x): P = curated objects ∪ background that no teacher label (cells of every stain, nuclei; dropped ones too) covers."""
    free = background.astype(bool)
    for labels in teacher_labels:
        free = free & (labels == 0)
    return (curated > 0) | free


def _ids(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    area = np.bincount(labels.ravel())
    area[:1] = 0
    ids = np.flatnonzero(area)
    return ids, area[ids]
