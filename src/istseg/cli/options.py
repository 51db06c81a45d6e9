"""The applications that commands belong to, and the options that several commands share."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from istseg.errors import InputError
from istseg.raw import READERS

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help="RNA-aware cell segmentation of MERSCOPE, CosMx and Xenium data."
)

comparator_app = typer.Typer(no_args_is_help=True, help="Other ways to segment a sample, to be judged by the same measures.")
app.add_typer(comparator_app, name="comparator")

Out = Annotated[Path, typer.Option("--out", help="Folder for the results; made when missing.")]
Device = Annotated[str, typer.Option(help="`cpu` or `cuda`. With `cuda` and no GPU the command fails; it never falls back.")]
NucleiWeights = Annotated[Optional[Path], typer.Option(help="Cellpose `nuclei` weights.")]
CytoWeights = Annotated[Optional[Path], typer.Option(help="Cellpose `cyto3` weights.")]
Checksum = Annotated[Optional[str], typer.Option(help="Their checksum.")]
CellDiameter = Annotated[float, typer.Option(min=1, max=100)]
NucleusDiameter = Annotated[float, typer.Option(min=1, max=50)]
MinArea = Annotated[float, typer.Option(min=0)]
DensitySigma = Annotated[float, typer.Option(min=0.1, help="Kernel of the RNA density.")]
Contain = Annotated[float, typer.Option(min=0.5, max=1, help="T_contain")]
Intersect = Annotated[float, typer.Option(min=0, max=0.5, help="T_intersect")]
GeneColours = Annotated[
    Optional[Path], typer.Option(exists=True, help="`gene_colours.csv` of `istseg coexpression`: transcripts are drawn in the colours of their genes.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Existing = {"exists": True}


Platform = enum.Enum("Platform", {name: name for name in READERS}, type=str)
"""Instruments that are read (`istseg.raw.READERS`)."""


class SimulatedPlatform(str, enum.Enum):
    """Instruments whose raw folders `istseg simulate` writes."""

    merscope = "merscope"
    cosmx = "cosmx"


class Network(str, enum.Enum):
    """Networks that painted tissue can teach (`pretrain.kinds`)."""

    istseg = "istseg"
    genesegnet = "genesegnet"


class TeacherName(str, enum.Enum):
    """Teachers of `istseg.teachers`."""

    watershed = "watershed"
    cellpose = "cellpose"
    vendor = "vendor"


class Unit(str, enum.Enum):
    """Frames of GeoJSON annotations."""

    px = "px"
    um = "um"


class Precision(str, enum.Enum):
    """Precisions of `istseg.network.inference`."""

    auto = "auto"
    bf16 = "bf16"
    float32 = "float32"


class Backbone(str, enum.Enum):
    """Backbones of `istseg.network.model`."""

    cnn = "cnn"
    swin = "swin"
    mamba = "mamba"


class RnaInput(str, enum.Enum):
    """RNA inputs of `istseg.network.model`."""

    density = "density"
    coexpression = "coexpression"
    learned = "learned"


PrecisionOption = Annotated[
    Precision, typer.Option(help="Of the network's arithmetic; `auto`: bf16 where the hardware multiplies it fast (GPU, CPU with AMX), else float32.")
]


def pairs(option: str, texts: list[str] | None) -> dict[str, Path]:
    """Name → path of `name=path`, for a repeatable option."""
    split = [text.partition("=") for text in texts or []]
    problems = [f"--{option} {name}{sign}{path}: write it as name=path." for name, sign, path in split if not name or not path]
    names = [name for name, _, _ in split]
    problems += [f"--{option} {name}=...: is given {names.count(name)} times; give each name once." for name in sorted(set(names)) if names.count(name) > 1]
    if problems:
        raise InputError(problems)
    return {name: Path(path) for name, _, path in split}


def numbers(option: str, text: str) -> list[float]:
    """Numbers of an option, written with commas between them; `none` for none."""
    if text.strip().lower() == "none":
        return []
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: must be numbers separated by commas, or `none`.") from None
