"""A rectangle of a Xenium folder: experiment.xenium, focused images, transcripts, cells and outlines.

Left out: the stack of planes, the matrix of counts, the bundles for the Xenium Explorer and the analysis, which convert does not read.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tifffile

from istseg.helpers import cut_rows
from istseg.raw import tiffs
from istseg.raw.xenium import TRANSCRIPT_FILES, XeniumSample

_TABLES = [f"{name}.{form}" for name in ("cells", "cell_boundaries", "nucleus_boundaries") for form in ("parquet", "csv.gz", "csv")]
_COORDINATES = (("x_location", "x_centroid", "vertex_x"), ("y_location", "y_centroid", "vertex_y"))
_TILE = 1024
_SMALLEST_LEVEL = 256
_DECIMALS = 6
"""Of a shifted coordinate in text, µm."""


def cut(reader: XeniumSample, low: np.ndarray, high: np.ndarray, out: Path) -> None:
    """Write the pixels from `low` to before `high` (x, y) and what lies on them to the folder `out`."""
    root, pixel = reader.root, reader.facts.pixel_size_um
    low_um, high_um = low * pixel, high * pixel
    for info in reader.pages.values():
        target = out / info.path.relative_to(root)
        target.parent.mkdir(exist_ok=True)
        _image(info, target, low, high)

    for name in TRANSCRIPT_FILES:
        if (root / name).exists():
            cut_rows.copy(root / name, out / name, lambda table: _shifted(cut_rows.within(table, ("x_location", "y_location"), low_um, high_um), low_um))
    kept = None if reader.facts.cells_from is None else pa.array(cut_rows.cells_within(reader, low_um, high_um), pa.string())
    for name in _TABLES:
        if kept is not None and (root / name).exists():
            cut_rows.copy(root / name, out / name, lambda table: _shifted(table.filter(pc.is_in(pc.cast(table["cell_id"], pa.string()), kept)), low_um))
    _experiment(reader, low_um, high_um, kept, out)


def _shifted(table: pa.Table, by: np.ndarray) -> pa.Table:
    for names, shift in zip(_COORDINATES, by, strict=True):
        for name in set(names) & set(table.column_names):
            place, column = table.column_names.index(name), table[name]
            moved = pc.subtract(cut_rows.numbers(table, name), float(shift))
            if pa.types.is_string(column.type):
                moved = pc.round(moved, _DECIMALS)
            table = table.set_column(place, name, moved.cast(column.type))
    return table


def _image(info: tiffs.PageInfo, target: Path, low: np.ndarray, high: np.ndarray) -> None:
    """JPEG 2000 without loss, in tiles, with levels, as the instrument writes."""
    with tiffs.PageReader(info) as page:
        pixels = page.block(int(low[1]), int(high[1]), int(low[0]), int(high[0]))
    text = info.description
    for name, size in zip("YX", pixels.shape, strict=True):
        text = re.sub(rf'\bSize{name}="\d+"', f'Size{name}="{size}"', text)
    levels = [pixels]
    while min(levels[-1].shape) >= 2 * _SMALLEST_LEVEL:
        levels.append(np.ascontiguousarray(levels[-1][::2, ::2]))
    form = {"tile": (_TILE, _TILE), "compression": "jpeg2000", "compressionargs": {"reversible": True}, "metadata": None, "software": False}
    with tifffile.TiffWriter(target, bigtiff=pixels.nbytes > 1 << 31) as tif:
        tif.write(levels[0], subifds=len(levels) - 1, description=text.encode(), **form)
        for level in levels[1:]:
            tif.write(level, subfiletype=1, **form)


def _experiment(reader: XeniumSample, low: np.ndarray, high: np.ndarray, kept: pa.Array | None, out: Path) -> None:
    facts = json.loads((reader.root / "experiment.xenium").read_text(encoding="utf-8"))
    facts.pop("xenium_explorer_files", None)
    if kept is not None and "num_cells" in facts:
        facts["num_cells"] = len(kept)
    facts["istseg_subset"] = {"region_um": [*low.tolist(), *high.tolist()]}
    (out / "experiment.xenium").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    panel = reader.root / "gene_panel.json"
    if panel.exists():
        shutil.copyfile(panel, out / panel.name)
