"""Comparators: other ways to segment a sample, judged by the same measures as ours (`--compare`).

Each has one entry in `METHODS`. A *tile-wise* method labels tiles in this package's environment, like a teacher: its module has `make(settings)`, which gives
something with `name`, `label(tile)` and `method` (`teachers.base.Teacher`). A *program* is foreign and runs once per sample in an environment of its own: its
module has `collect(raw, prior)`, which reads what the program wrote. Both have `problems(surroundings)`, what preflight refuses.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from istseg.errors import InputError
from istseg.teachers.watershed import Sizes

TILE, PROGRAM = "tile", "program"
ROAD = ("vendor", "teacher")
"""Segmentations that the road makes anyway."""
NONE = "none"


@dataclass(frozen=True)
class Settings:
    """What tile-wise methods are made of.

    Attributes
    ----------
    sizes
        Of nuclei and cells.
    teacher_labels
        Folder with the tiles' folders of `teach`: the nuclei of methods that take them from the teacher.
    weights
        Role (`nuclei`, `cyto`, `genesegnet`) → file.
    sha256
        Role → digest that the file must have.
    expansion_um
        How far `expansion` lets nuclei grow.
    membranes
        `genesegnet` sees the membrane stains; else the nucleus stain alone.
    device
        `cpu` or `cuda`.
    precision
        Key of `network.inference.PRECISIONS`, for `genesegnet`.
    """

    sizes: Sizes = Sizes()
    teacher_labels: Path | None = None
    weights: Mapping[str, Path | None] = field(default_factory=dict)
    sha256: Mapping[str, str | None] = field(default_factory=dict)
    expansion_um: float = 5.0
    membranes: bool = True
    device: str = "cpu"
    precision: str = "auto"


@dataclass(frozen=True)
class Surroundings:
    """What preflight knows when it asks a method whether it can run.

    Attributes
    ----------
    params
        Parameters of the run.
    weights
        Role → where the weights are staged.
    programs
        Folder of the installed programs (`make comparators`); None where each program has its container.
    """

    params: Mapping[str, Any]
    weights: Mapping[str, Path | None] = field(default_factory=dict)
    programs: Path | None = None


@dataclass(frozen=True)
class Method:
    """One comparator: its name, `TILE` or `PROGRAM`, and the module that implements it."""

    name: str
    kind: str

    @property
    def module(self) -> Any:
        """Imported when it is needed: some load torch."""
        return importlib.import_module(f"istseg.comparators.{self.name}")


METHODS = {
    method.name: method
    for method in (
        Method("watershed", TILE),
        Method("cellpose", TILE),
        Method("expansion", TILE),
        Method("genesegnet", TILE),
        Method("proseg", PROGRAM),
        Method("comseg", PROGRAM),
        Method("baysor", PROGRAM),
    )
}
NAMES = (*ROAD, *METHODS)
"""All that `--compare` takes."""


def find(name: str, kind: str) -> Method:
    """The method of a name.

    Raises
    ------
    InputError
        If there is none of this kind; the nearest name is told.
    """
    known = [m.name for m in METHODS.values() if m.kind == kind]
    if name in known:
        return METHODS[name]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}."
    raise InputError(f"--method {name}: is no {kind} comparator; {hint}")


def chosen(compare: str) -> list[str]:
    """Names of the parameter `compare`, in order, each once; empty for `none`."""
    return [name for name in dict.fromkeys(compare.split(",")) if name != NONE]


def problems(names: list[str], surroundings: Surroundings) -> list[str]:
    """What comparators lack, all at once; names that are none are left to the check of parameters."""
    return [f"--compare {name}: {text}" for name in names if name in METHODS for text in METHODS[name].module.problems(surroundings)]
