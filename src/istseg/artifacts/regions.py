"""`regions/`: a few squares of a sample as layers for a viewer, the report's close look.

The folder holds `regions.json` and one picture per stain and one of the RNA for each region, PNG at working resolution, black where no tile was written.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from istseg.artifacts.files import read_record, write_json

FORMAT = 1


@dataclass
class Region:
    """One square.

    Attributes
    ----------
    reason
        Why it was chosen, in words.
    corner_um
        (x, y) of the upper left corner of the picture, in µm from the mosaic's upper left corner.
    layers
        `{"name", "role", "file", "colour"}` of each picture: grey values to be tinted with the colour (`#rrggbb`), or a picture
        in colours where that is None; role `nucleus`, `membrane` or `rna`.
    outlines
        `{"name", "kind", "rings", "ids", "flags"}` of nuclei and of each segmentation: `rings` are texts `x,y x,y …` (SVG's `points`) in pixels of the
        pictures, closed; `ids` and `flags` (index into `metrics.FLAGS`) one for each ring; `flags` is None where they are not known.
    """

    reason: str
    corner_um: tuple[float, float]
    layers: list[dict[str, str | None]]
    outlines: list[dict[str, Any]]


@dataclass
class Regions:
    """`regions.json`.

    Attributes
    ----------
    side_px, um_per_px
        Of all pictures.
    """

    sample: str
    side_px: int
    um_per_px: float
    regions: list[Region] = field(default_factory=list)
    format: int = FORMAT

    def write(self, path: str | Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> Regions:
        """Read the file; InputError if it is missing or of another format."""
        raw = read_record(path, "regions", FORMAT)
        regions = [Region(**{**region, "corner_um": tuple(region["corner_um"])}) for region in raw.pop("regions")]
        return cls(**raw, regions=regions)
