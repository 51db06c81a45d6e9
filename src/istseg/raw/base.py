"""The interface of a raw folder, and what all platforms share: options, facts, roles of stains, choice of planes."""

from __future__ import annotations

import abc
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from istseg.errors import InputError

TRANSCRIPT_SCHEMA = pa.schema(
    [
        ("transcript_id", pa.int64()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("z", pa.float32()),
        ("gene", pa.string()),
        ("is_control", pa.bool_()),
        ("vendor_cell", pa.string()),
    ]
)
"""`transcript_id`: row number in the whole raw table, from 0. `x`, `y`: micron frame. `z`: plane. `vendor_cell`: null when unassigned."""


@dataclass(frozen=True)
class Options:
    """What the user says about a sample.

    Attributes
    ----------
    nucleus_stain
        None: the platform's default.
    membrane_stains
        None: the platform's default; empty: none.
    z_planes
        `focus`, one plane (`3`), a range (`1-5`) or `all`.
    fovs
        Fields of view of the sample; None: all.
    pixel_size_um
        Pixel size where the files do not say it.
    """

    nucleus_stain: str | None = None
    membrane_stains: tuple[str, ...] | None = None
    z_planes: str = "focus"
    fovs: frozenset[int] | None = None
    pixel_size_um: float | None = None

    @classmethod
    def parse(
        cls,
        problems: list[str],
        where: str = "",
        *,
        nucleus_stain: str | None = None,
        membrane_stains: str | None = None,
        z_planes: str | None = None,
        fovs: str | None = None,
        pixel_size_um: float | str | None = None,
    ) -> Options:
        """Read options as people write them; what is wrong is appended to `problems`, each starting with `where`."""
        planes = (z_planes or "focus").strip().lower()
        if planes not in ("focus", "all") and not re.fullmatch(r"[0-9]{1,4}(-[0-9]{1,4})?", planes):
            problems.append(f"{where}z_planes {z_planes!r}: write `focus`, `all`, one plane such as `3`, or a range such as `1-5`.")
            planes = "focus"
        if "-" in planes and int(planes.split("-")[0]) > int(planes.split("-")[1]):
            problems.append(f"{where}z_planes {z_planes!r}: the first plane of a range must not be above the last one.")
            planes = "focus"
        return cls(
            nucleus_stain=(nucleus_stain or "").strip() or None,
            membrane_stains=_stain_list(membrane_stains),
            z_planes=planes,
            fovs=_fov_list(fovs, where, problems),
            pixel_size_um=_pixel_size(pixel_size_um, where, problems),
        )


def _stain_list(text: str | None) -> tuple[str, ...] | None:
    names = [name.strip() for name in (text or "").split(";") if name.strip()]
    if not names:
        return None
    if [name.lower() for name in names] == ["none"]:
        return ()
    return tuple(dict.fromkeys(names))


def _fov_list(text: str | None, where: str, problems: list[str]) -> frozenset[int] | None:
    parts = [part.strip() for part in re.split(r"[;,]", text or "") if part.strip()]
    if not parts:
        return None
    fovs: set[int] = set()
    for part in parts:
        match = re.fullmatch(r"([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            problems.append(f"{where}fovs {text!r}: {part!r} is not a field of view or a range; write for example `1-20;33`.")
            continue
        fovs.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(fovs) or None


def _pixel_size(value: float | str | None, where: str, problems: list[str]) -> float | None:
    if value is None or value == "":
        return None
    try:
        size = float(value)
    except ValueError:
        size = float("nan")
    if not 0.01 <= size <= 5:
        problems.append(f"{where}pixel_size_um {value!r}: must be a number of µm between 0.01 and 5, for example 0.12028.")
        return None
    return size


@dataclass
class Channel:
    """One stain as it will be converted. `planes`: those that are used (maximum projection when several)."""

    name: str
    role: str
    planes: list[int]
    dtype: str


@dataclass
class Facts:
    """What `inspect` finds without reading the pixels.

    Attributes
    ----------
    channels
        Nucleus stain first, then membrane stains, then the others.
    planes
        All planes that exist.
    micron_to_pixel
        (3, 3), µm → full-resolution mosaic pixel (x, y).
    tables
        Raw tables that are read, for the checksums.
    cells_from
        Where vendor cells come from, in words; None without.
    """

    generation: str
    channels: list[Channel]
    planes: list[int]
    height_px: int
    width_px: int
    pixel_size_um: float
    micron_to_pixel: np.ndarray
    tables: list[Path]
    cells_from: str | None = None
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, y, x)."""
        return len(self.channels), self.height_px, self.width_px


class RawSample(abc.ABC):
    """A raw folder of one sample.

    Parameters
    ----------
    root
        The folder, as the user gives it.
    options
        What the user says about it.
    """

    platform: ClassVar[str]
    facts: Facts
    """Set by `inspect`."""

    def __init__(self, root: Path, options: Options):
        self.root = root
        self.options = options

    @classmethod
    @abc.abstractmethod
    def root_of(cls, folder: Path, names: set[str], top: Path) -> Path | None:
        """The folder of the sample that a folder with these entries belongs to, not above `top`; None where it is none of this platform."""

    @classmethod
    def remains_of(cls, folder: Path, names: set[str], top: Path) -> Path | None:
        """The same for what is left of a damaged sample: files or images that only this platform has, without all that `root_of` asks for."""
        return None

    @abc.abstractmethod
    def inspect(self) -> Facts:
        """Look at headers and bounded samples only; must come first.

        Raises
        ------
        InputError
            With all problems of the folder.
        """

    @abc.abstractmethod
    def choose_planes(self) -> dict[str, Any]:
        """Settle the planes of every channel (reads a bounded sample of blocks for `focus`) and say how, for `details`."""

    def pixels(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray | None:
        """Part of the mosaic (c, h, w), nucleus and membrane stains of one plane, for checks before the conversion.

        None where `inspect` settled by other means how the image lies against the transcripts.
        """
        return None

    @abc.abstractmethod
    def strips(self, rows: int, scratch: Path) -> Iterator[np.ndarray]:
        """Give the mosaic from top to bottom as uint8/uint16 (c, h, x) strips of `rows` rows (the last one may be lower); each raw pixel is read once.

        A strip is valid until the next one: they may share memory.

        `scratch` is an existing folder for decoded images that cannot be read in part.
        """

    @abc.abstractmethod
    def transcripts(self) -> Iterator[pa.Table]:
        """Give all rows of the raw table, in its order, as tables with `TRANSCRIPT_SCHEMA`; coordinates may be null or NaN."""

    @abc.abstractmethod
    def transcript_sample(self) -> pa.Table:
        """Give a bounded number of rows from several places of the raw table, with `TRANSCRIPT_SCHEMA`."""

    @abc.abstractmethod
    def vendor_cells(self, wanted_plane: int | None) -> tuple[list[str], list[Any], dict[str, int]]:
        """Ids, valid shapely polygons in µm, and counts of what was left out and why. Empty without vendor cells."""

    def vendor_planes(self) -> Iterator[tuple[str, int, Any]]:
        """Give id, plane and valid polygon (µm) of every outline of the vendor's cells, all planes of a cell together; nothing where the platform has one
        outline for each cell. Comes after `vendor_cells`.
        """
        return iter(())


def refuse_special_files(folder: Path) -> None:
    """Pipes, sockets and devices have no place in a raw folder: opening one would wait for ever.

    Raises
    ------
    InputError
        Naming the first one.
    OSError
        If a folder cannot be listed.
    """
    pending = [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                # `exists` is false for a link that leads nowhere: whoever reads it tells so. Plain files need no call of the system.
                elif not entry.is_file(follow_symlinks=False) and os.path.exists(entry.path) and not entry.is_file() and not entry.is_dir():
                    raise InputError(f"{entry.path}: is a pipe, socket or device, not a file. Take it out of the raw folder.")


def assign_roles(
    names: list[str], options: Options, nucleus_pattern: str, membrane_pattern: str, where: str, problems: list[str], warnings: list[str]
) -> list[tuple[str, str]]:
    """Give every stain its role.

    Parameters
    ----------
    names
        Stains that there are.
    options
        What the user wants.
    nucleus_pattern, membrane_pattern
        Regular expressions (whole name, any case) of the platform's defaults.
    where
        Folder, for the messages.
    problems, warnings
        Get what is wrong.

    Returns
    -------
    (name, role): the nucleus stain, membrane stains in the order of the user (or of `names`), the others. Without nucleus stain the list is
    empty and `problems` says why.
    """
    there = ", ".join(names) or "none"

    def find(wanted: str, what: str) -> str | None:
        exact = [n for n in names if n == wanted] or [n for n in names if n.lower() == wanted.lower()]
        if not exact:
            problems.append(f"{where}: {what} {wanted!r} is not there; the stains are: {there}.")
            return None
        return exact[0]

    if options.nucleus_stain:
        nucleus = find(options.nucleus_stain, "nucleus stain")
    else:
        nucleus = next((n for n in names if re.fullmatch(nucleus_pattern, n, re.IGNORECASE)), None)
        if nucleus is None and names:
            problems.append(f"{where}: no stain is known as a nucleus stain; name it as nucleus_stain. The stains are: {there}.")
    if options.membrane_stains is None:
        membranes = [n for n in names if n != nucleus and re.fullmatch(membrane_pattern, n, re.IGNORECASE)]
    else:
        membranes = [m for m in (find(w, "membrane stain") for w in options.membrane_stains) if m]
    if nucleus in membranes:
        problems.append(f"{where}: {nucleus!r} is both nucleus and membrane stain; give it one role.")
    if nucleus is None:
        return []
    others = [n for n in names if n != nucleus and n not in membranes]
    if not membranes and options.membrane_stains is None:
        rest = f"; {', '.join(others)} stay in the image only (name them as membrane_stains to use them)" if others else ""
        warnings.append(f"No membrane stain is known by name: the network sees {nucleus} and RNA alone{rest}.")
    return [(nucleus, "nucleus"), *[(m, "membrane") for m in dict.fromkeys(membranes)], *[(o, "other") for o in others]]


def wanted_planes(choice: str, planes: list[int]) -> list[int]:
    """Planes that a choice other than `focus` names, of those that there are."""
    if choice == "all":
        return list(planes)
    first, _, last = choice.partition("-")
    return [p for p in planes if int(first) <= p <= int(last or first)]


def options_of(**text: Any) -> Options:
    """Options from text; problems raise.

    Raises
    ------
    InputError
        With all problems.
    """
    problems: list[str] = []
    options = Options.parse(problems, **text)
    if problems:
        raise InputError(problems)
    return options
