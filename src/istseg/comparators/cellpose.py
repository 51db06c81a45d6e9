"""Comparator `cellpose`: Cellpose 3 `cyto3` on each membrane stain, the best stain kept, as in the paper (Benchmarked method hyper-parameters); the teacher of
that name, where the run has another one.
"""

from __future__ import annotations

from istseg.comparators import Settings, Surroundings
from istseg.teachers.cellpose import CellposeTeacher, staged_problems

ROLES = ("nuclei", "cyto")


def make(settings: Settings) -> CellposeTeacher:
    """The teacher with the weights of the run."""
    files = [value for role in ROLES for value in (settings.weights.get(role), settings.sha256.get(role))]
    return CellposeTeacher(*files, settings.sizes, settings.device)


def problems(surroundings: Surroundings) -> list[str]:
    """Weights that are missing, have another digest, or are no Cellpose 3 network."""
    missing = [role for role in ROLES if not surroundings.weights.get(role)]
    told = [f"needs --{role}_weights, a file with Cellpose 3 weights (nothing is downloaded)." for role in missing]
    return told + staged_problems({role: surroundings.weights.get(role) for role in ROLES}, surroundings.params)
