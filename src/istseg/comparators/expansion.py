"""Comparator `expansion`: the teacher's nuclei, grown by a fixed distance where they do not meet.

What instruments do without a membrane stain: 10x Genomics Xenium grows nuclei by 5 µm since Xenium Onboard Analysis 2.0 (15 µm before).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from skimage.segmentation import expand_labels

from istseg.artifacts.labels import TileLabels
from istseg.artifacts.tiles import Tile
from istseg.comparators import Settings, Surroundings
from istseg.errors import InputError
from istseg.teachers.base import NUCLEI


class Expansion:
    """Grown nuclei.

    Parameters
    ----------
    teacher_labels
        Folder with the tiles' folders of `teach`.
    distance_um
        How far nuclei grow.

    Raises
    ------
    InputError
        If the folder is not given.
    """

    name = "expansion"

    def __init__(self, teacher_labels: Path | None, distance_um: float):
        if teacher_labels is None:
            raise InputError("the comparator `expansion` grows the teacher's nuclei; give them with --teacher-labels (the folder of teach).")
        self.teacher_labels = teacher_labels
        self.distance_um = distance_um

    @property
    def method(self) -> dict[str, Any]:
        """How the labels are made."""
        return {"comparator": self.name, "expansion_um": self.distance_um}

    def label(self, tile: Tile) -> dict[str, np.ndarray]:
        """Layer `cells`; each has the number of its nucleus."""
        nuclei = TileLabels.read(self.teacher_labels / tile.tile_id, [NUCLEI]).layers[NUCLEI]
        return {"cells": expand_labels(nuclei, self.distance_um / tile.working_um).astype(np.int32)}


def make(settings: Settings) -> Expansion:
    """See `Expansion`."""
    return Expansion(settings.teacher_labels, settings.expansion_um)


def problems(surroundings: Surroundings) -> list[str]:
    """It needs nothing."""
    return []
