"""`thresholds.json`: what `calibrate` derives from the sketches of all tiles of a sample."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from istseg.artifacts.files import read_json, write_json
from istseg.errors import InputError


@dataclass
class Thresholds:
    """Thresholds of one sample.

    Attributes
    ----------
    background_density
        `T_b`: transcripts per µm² below which a pixel is background [paper: Background segmentation].
    spurious_count
        `T_spurious`: a cell without nucleus and with fewer transcripts is spurious [paper: Validation and metrics].
    density_sigma_um
        Kernel of the RNA density that `background_density` comes from, µm.
    best_stain
        Membrane stain whose teacher cells agree best with the nuclei (most cells that contain exactly one nucleus); None without membrane stain.
    density_histogram
        `{"edges": [...], "counts": [...]}` of the density inside nuclei, transcripts per µm², for the report.
    count_histogram
        `{"values": [...], "counts": [...]}` transcripts per nucleus.
    best_layer
        Layer of the teacher's labels whose cells agree best with the nuclei: `cells_<best_stain>`, or `cells_expansion`, `cells_vendor` where there is no
        cell layer of a membrane stain; None when no tile has a cell layer. What `merge` takes as the segmentation `teacher`.
    """

    sample: str
    background_density: float
    spurious_count: float
    n_nuclei: int
    n_nucleus_pixels: int
    best_stain: str | None
    teacher_cells: dict[str, dict[str, int]]
    percentiles: dict[str, float]
    density_histogram: dict[str, list[float]] = field(default_factory=dict)
    count_histogram: dict[str, list[float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    density_sigma_um: float = 1.08
    best_layer: str | None = None

    def write(self, path: str | Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> Thresholds:
        raw: dict[str, Any] = read_json(path, "the thresholds.json of the stage calibrate")
        try:
            return cls(**raw)
        except TypeError as error:
            raise InputError(f"{path}: is not a thresholds.json of this version ({error}); run calibrate again.") from None
