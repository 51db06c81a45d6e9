"""`preflight.json`: what is known of every sample and of the machine before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from istseg.artifacts.files import read_record, write_json
from istseg.errors import InputError

FORMAT = 1


@dataclass
class Resolved:
    """One sample as it will be converted.

    Attributes
    ----------
    path
        As in the samplesheet.
    stains
        `{"name", "role", "planes", "dtype"}`; `planes` is empty where the best focused plane is chosen later.
    planes
        All planes that exist.
    transcripts
        Of a bounded sample of the table: `sampled`, `genes` (names seen), `inside_fraction`, `control_fraction`, `repeated_fraction`.
    evidence
        Orientation, pixel size source and other coordinate evidence of the platform.
    vendor_cells
        Where they come from; None without.
    disk_bytes
        Estimate of what all results of the sample take.
    warnings
        Sentences for the user.
    annotations
        `path`, `cells`, `region` (whether there is one) of the annotated cells; None without.
    size
        How much work the sample is (`istseg.workload`); tasks ask for memory and time by it.
    """

    sample: str
    platform: str
    path: str
    generation: str
    stains: list[dict[str, Any]]
    planes: list[int]
    height_px: int
    width_px: int
    pixel_size_um: float
    micron_to_pixel: list[list[float]]
    transcripts: dict[str, Any]
    evidence: dict[str, Any]
    vendor_cells: str | None
    disk_bytes: int
    warnings: list[str] = field(default_factory=list)
    annotations: dict[str, Any] | None = None
    size: dict[str, float] = field(default_factory=dict)


@dataclass
class Preflight:
    """All samples and the machine (`device`, `gpu`, `disk_free_bytes`, `disk_needed_bytes`)."""

    samples: list[Resolved]
    machine: dict[str, Any]
    format: int = FORMAT

    def write(self, path: str | Path) -> None:
        """Write the file."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> Preflight:
        """Read the file.

        Raises
        ------
        InputError
            If it is not of this version.
        """
        raw = read_record(path, "preflight", FORMAT)
        try:
            return cls([Resolved(**s) for s in raw["samples"]], raw["machine"])
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: is not a preflight.json of this version ({error}); run preflight again.") from None
