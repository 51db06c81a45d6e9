"""`metrics.json`: all that is measured of one segmentation of one sample, the report's contract.

The folder of `assess` holds it beside `counts.h5ad`, `overview.png` and `crops/`. Every number in the report is read from here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
        `area_ratio` (None where there is no border); `fov`: the same at borders between the instrument's fields of view, None where these are not known.
    purity
        What `istseg.qc.purity` gives: control probes, mutually exclusive genes, contamination, markers.
    reproducibility
        What `istseg.qc.profiles` gives: halves of the transcripts, nucleus against the rest of the cell.
    embedding
        `x`, `y`, `flag` (index into FLAGS), `cluster` (Leiden), `log_counts` of at most 20,000 cells (UMAP); empty lists without.
    maps
        Sums over squares of the image, see `istseg.qc.maps`; empty without cells inside.
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
    purity: dict[str, Any] = field(default_factory=dict)
    reproducibility: dict[str, Any] = field(default_factory=dict)
    embedding: dict[str, list[float]] = field(default_factory=dict)
    maps: dict[str, Any] = field(default_factory=dict)
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


class Measure(NamedTuple):
    """One number that segmentations are compared by.

    Attributes
    ----------
    name
        In tables.
    title
        For readers.
    unit
        `share` (0 to 1), `count`, `um2`, `ratio`, `correlation`, `difference` (of two shares) or `index` (adjusted Rand index).
    better
        `high`, `low`, `one` (the nearer to 1 the better) or empty where neither is.
    path
        Where it stands in the record.
    """

    name: str
    title: str
    unit: str
    better: str
    path: tuple[str, ...]

    def value(self, record: dict[str, Any]) -> float | None:
        """The number in a record; None where it was not measured."""
        found: Any = record
        for step in self.path:
            found = found.get(step) if isinstance(found, dict) else None
        return found

    def row(self, record: dict[str, Any], segmentation: str, against: str = "") -> dict[str, Any]:
        """A row of a tidy table."""
        about = {"segmentation": segmentation, "against": against, "metric": self.name}
        return {**about, "value": self.value(record), "unit": self.unit, "better": self.better}


MEASURES = (
    Measure("n_cells", "Cells", "count", "", ("n_cells",)),
    Measure("transcripts_per_cell", "Transcripts per cell, median", "count", "", ("quantiles", "n_transcripts", "median")),
    Measure("genes_per_cell", "Genes per cell, median", "count", "", ("quantiles", "n_genes", "median")),
    Measure("area_um2", "Area, median", "um2", "", ("quantiles", "area_um2", "median")),
    Measure("transcripts_in_cells", "Transcripts in cells", "share", "high", ("transcripts", "fraction_in_cells")),
    Measure("spurious_rate", "Spurious cells", "share", "low", ("flags", "spurious_rate")),
    Measure("inconsistent_rate", "Inconsistent cells", "share", "low", ("flags", "inconsistent_rate")),
    Measure("without_nucleus_rate", "Cells without nucleus", "share", "low", ("flags", "without_nucleus_rate")),
    Measure("nuclei_in_one_cell", "Nuclei in exactly one cell", "share", "high", ("nuclei", "fraction_in_one_cell")),
    Measure("nuclei_in_no_cell", "Nuclei in no cell", "count", "low", ("nuclei", "in_no_cell")),
    Measure("controls_in_cells", "Control probes in cells", "count", "", ("transcripts", "controls_in_cells")),
    Measure("control_enrichment", "Control probes in cells, against genes", "ratio", "low", ("purity", "control_enrichment")),
    Measure("mecr", "Exclusive genes together in a cell", "share", "low", ("purity", "mecr")),
    Measure("contamination", "Contamination by neighbours", "difference", "low", ("purity", "contamination")),
    Measure("marker_purity", "Marker purity", "share", "high", ("purity", "marker_purity")),
    Measure("half_correlation", "Halves of a cell, correlation", "correlation", "high", ("reproducibility", "half_correlation")),
    Measure("neighbour_consistency", "Halves of a cell, same neighbours", "share", "high", ("reproducibility", "neighbour_consistency")),
    Measure("nuclear_correlation", "Nucleus and rest of a cell, correlation", "correlation", "high", ("reproducibility", "nuclear_correlation")),
    Measure("nuclear_specificity", "The same beyond the neighbour's", "correlation", "high", ("reproducibility", "nuclear_specificity")),
    Measure("seam_density", "Cell density at tile borders", "ratio", "one", ("seams", "density_ratio")),
    Measure("seam_area", "Cell area at tile borders", "ratio", "one", ("seams", "area_ratio")),
    Measure("fov_density", "Cell density at borders of fields of view", "ratio", "one", ("seams", "fov", "density_ratio")),
    Measure("fov_area", "Cell area at borders of fields of view", "ratio", "one", ("seams", "fov", "area_ratio")),
)
"""What `metrics.json` says of a segmentation, in the order of tables. docs/metrics.md has formula and source of each."""
