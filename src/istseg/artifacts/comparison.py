"""`comparison.json`: all segmentations of a sample against each other and against annotated cells; `annotated_cells.parquet` beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from istseg.artifacts.files import read_record, write_json
from istseg.artifacts.metrics import Measure

FORMAT = 1
ANNOTATED = "annotations"
"""Stands in the place of a second segmentation where a measure is against annotated cells."""

AGREEMENT = (
    Measure("matched", "Cells with a partner", "share", "", ("matched_first",)),
    Measure("matched_iou", "IoU of partners, mean", "share", "", ("mean_iou",)),
    Measure("ari", "Transcripts, adjusted Rand index", "index", "", ("ari",)),
    Measure("ari_assigned", "The same, transcripts that both assign", "index", "", ("ari_assigned",)),
)
AGAINST = (
    Measure("pixel_iou", "Pixel IoU, mean", "share", "high", ("pixel_iou_mean",)),
    Measure("pixel_iou_median", "Pixel IoU, median", "share", "high", ("pixel_iou_median",)),
    Measure("rna_iou", "RNA IoU, mean", "share", "high", ("rna_iou_mean",)),
    Measure("rna_iou_median", "RNA IoU, median", "share", "high", ("rna_iou_median",)),
    Measure("found", "Annotated cells found", "share", "high", ("found",)),
    Measure("mean_ap", "Average precision, mean", "share", "high", ("dense", "mean_ap")),
    Measure("precision", "Precision at IoU 0.5", "share", "high", ("dense", "precision")),
    Measure("recall", "Recall at IoU 0.5", "share", "high", ("dense", "recall")),
    Measure("panoptic_quality", "Panoptic quality", "share", "high", ("dense", "panoptic_quality")),
)


@dataclass
class Comparison:
    """The segmentations of one sample.

    Attributes
    ----------
    segmentations
        Names, sorted.
    agreement
        One entry for each pair, `first` before `second` by name: `n_first`, `n_second` (cells), `n_matched`, `matched_first`, `matched_second`, `mean_iou`,
        `ari`, `ari_assigned`, `assigned_both` (`istseg.qc.agreement`).
    against
        By segmentation, `istseg.qc.annotated.summary` and, where truth is whole, `dense`. Empty without annotations.
    maps
        Other segmentation → where ours has a partner in it: sums over squares, `cells` and `matched` (`istseg.qc.maps`).
    annotations
        `n_cells`, `region_um2` (None: truth is not whole); None without.
    parameters
        `match_iou`, `iou_thresholds`.
    """

    sample: str
    segmentations: list[str]
    agreement: list[dict[str, Any]] = field(default_factory=list)
    against: dict[str, dict[str, Any]] = field(default_factory=dict)
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[str, Any] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    format: int = FORMAT

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What there is against annotated cells: `AGAINST` and the average precision at each threshold."""
        at = [f"{t:g}" for t in self.parameters.get("iou_thresholds", [])]
        return (*AGAINST, *(Measure(f"ap_{t}", f"Average precision at IoU {t}", "share", "high", ("dense", "ap", t)) for t in at))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Tidy rows: `segmentation`, `against` (another segmentation or `annotations`), `metric`, `value`, `unit`, `better`; no row without a value."""
        found = []
        for pair in self.agreement:
            turned = {**pair, "matched_first": pair["matched_second"]}
            for record, one, other in ((pair, pair["first"], pair["second"]), (turned, pair["second"], pair["first"])):
                found += [m.row(record, one, other) for m in AGREEMENT]
        for name, record in self.against.items():
            found += [m.row(record, name, ANNOTATED) for m in self.measures]
        return [row for row in found if row["value"] is not None]

    def write(self, path: str | Path) -> None:
        """Write the file, its tidy rows too."""
        write_json(path, {**asdict(self), "rows": self.rows})

    @classmethod
    def read(cls, path: str | Path) -> Comparison:
        """Read the file; InputError if it is missing or of another format."""
        raw = read_record(path, "compare", FORMAT)
        raw.pop("rows", None)
        return cls(**raw)
