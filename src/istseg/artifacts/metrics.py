"""`metrics.json`: all that is measured of one segmentation of one sample, the report's contract.

The folder of `assess` holds it beside `counts.h5ad`, `overview.png` and `crops/`. Every number in the report is read from here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from istseg.artifacts.files import read_record, write_json

FORMAT = 1
FLAGS = ("consistent", "no_nucleus", "inconsistent", "spurious")
"""Every cell has exactly one. `no_nucleus`: without nucleus but with at least `T_spurious` transcripts."""


@dataclass
class Metrics:
    """Figures of one segmentation.

    Attributes
    ----------
    transcripts
        `total` (genes, no controls), `in_image`, `in_cells`, `fraction_in_cells` (of those in the image), `controls`, `controls_in_cells`, `outside_image`.
    nuclei
        `total`, `in_one_cell` (contained by exactly one cell), `fraction_in_one_cell`, `in_no_cell`.
    flags
        Number of cells inside the image by flag (`FLAGS`); `spurious_rate`, `inconsistent_rate`, `without_nucleus_rate` as shares of them
        (None without cells); `outside_image`, cells whose centroid lies outside.
    reasons
        Number of cells by value of `qc_reason`.
    quantiles
        `n_transcripts`, `n_genes`, `area_um2` → `{"min", "p5", "p25", "median", "p75", "p95", "max", "mean"}`; empty without cells.
    histograms
        Same names → `{"edges": [...], "counts": [...]}`.
    seams
        Cells whose centroid lies within 10 µm of a border between tiles against all other cells: `n_border`, `n_inside`, `density_ratio`,
        `area_ratio` (None where there is no border).
    embedding
        `x`, `y`, `flag` (index into FLAGS), `log_counts` of at most 20,000 cells (UMAP); empty lists without.
    crops
        `{"file", "cell_id", "flag", "reason"}` of the example pictures.
    overview
        `{"file", "um_per_px"}` of the picture of the whole sample with contours; None when there is none.
    method
        How the segmentation was made (model or teacher, hash, parameters).
    warnings
        Sentences for the user.

    """

    sample: str
    platform: str
    segmentation: str
    n_cells: int
    transcripts: dict[str, Any]
    nuclei: dict[str, Any]
    flags: dict[str, Any]
    reasons: dict[str, int]
    quantiles: dict[str, dict[str, float]]
    histograms: dict[str, dict[str, list[float]]]
    thresholds: dict[str, float]
    seams: dict[str, Any] = field(default_factory=dict)
    embedding: dict[str, list[float]] = field(default_factory=dict)
    crops: list[dict[str, str]] = field(default_factory=list)
    overview: dict[str, Any] | None = None
    method: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    format: int = FORMAT

    def write(self, path: str | Path) -> None:
        """Write the file."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> Metrics:
        """Read the file; InputError if it is missing or of another format."""
        raw = read_record(path, "assess", FORMAT)
        return cls(**raw)
