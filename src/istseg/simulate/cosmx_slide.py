"""What all files of a simulated CosMx slide share: its frame, where its fields of view lie, the names of its targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from istseg.simulate.molecules import N_CONTROLS
from istseg.simulate.panel import GENES
from istseg.simulate.recipe import Recipe

PIXEL = {"A": 0.18, "B": 0.120280945, "C": 0.120280945}
"""µm."""
CONTROL_NAMES = {
    "A": [f"NegPrb{i + 1}" for i in range(N_CONTROLS)],
    "B": [*(f"Negative{i + 1}" for i in range(N_CONTROLS // 2)), *(f"SystemControl{i + 1}" for i in range(N_CONTROLS - N_CONTROLS // 2))],
}
CONTROL_NAMES["C"] = CONTROL_NAMES["B"]


@dataclass(frozen=True)
class Slide:
    """A slide to write.

    Attributes
    ----------
    frame
        (height, width) of a field of view (FOV) in pixels.
    corners
        FOV i + 1 → (y, x) of its upper left corner in mosaic pixels, not whole numbers.
    """

    recipe: Recipe
    folder: Path
    parts: Path
    generation: str
    name: str
    frame: tuple[int, int]
    corners: tuple[tuple[float, float], ...]

    @property
    def pixel_um(self) -> float:
        """Side of a pixel."""
        return PIXEL[self.generation]

    @cached_property
    def targets(self) -> list[str]:
        """Names of genes and controls."""
        return [*GENES, *CONTROL_NAMES[self.generation]]

    def place(self, fov: int) -> tuple[float, float]:
        """Position (x, y) of a FOV in the instrument's global pixels, in which y grows upwards.

        It is that of the lower left corner in generation A, of the upper left corner in B and C.
        """
        y, x = self.corners[fov - 1]
        return 494.444 + x, (-160233.333 - y - self.frame[0]) if self.generation == "A" else (92340.5 - y)
