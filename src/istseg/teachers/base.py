"""What a teacher is: something that labels nuclei and cells of a tile without being trained on it."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from istseg.artifacts.tiles import Tile

NUCLEI = "nuclei"
CELLS = "cells_"
"""Prefix of cell layers: `cells_<membrane stain>`, `cells_expansion` without membrane stain, `cells_vendor`."""


class Teacher(abc.ABC):
    """A teacher.

    Attributes
    ----------
    name
        As in the parameter `teacher`.
    needs
        What it needs beside the tile, in words; empty when nothing.

    """

    name: str
    needs: tuple[str, ...] = ()

    @abc.abstractmethod
    def label(self, tile: Tile) -> dict[str, np.ndarray]:
        """Label a tile.

        Returns
        -------
        Layer → int32 (y, x) over the tile's region, 0 is background: `nuclei` and at least one layer `cells_*`. An object that lies 40 µm or more inside the
        region has the same pixels in whichever tile it is labelled.

        """

    @property
    @abc.abstractmethod
    def method(self) -> dict[str, Any]:
        """How the labels are made: name, parameters, hashes; kept beside the labels."""
