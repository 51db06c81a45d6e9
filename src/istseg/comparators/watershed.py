"""Comparator `watershed`: the teacher of that name, where the run has another one."""

from __future__ import annotations

from istseg.comparators import Settings, Surroundings
from istseg.teachers.watershed import WatershedTeacher


def make(settings: Settings) -> WatershedTeacher:
    """The teacher."""
    return WatershedTeacher(settings.sizes)


def problems(surroundings: Surroundings) -> list[str]:
    """It needs nothing."""
    return []
