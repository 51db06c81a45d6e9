"""How much work a sample is, before any of it is done: what the estimates of memory and time in `conf/resources.config` go by."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow.parquet as pq

from istseg.raw import tables
from istseg.raw.base import Facts
from istseg.resample import sample_grid

GZIP_GROWTH = 4
"""Times that a packed table of transcripts grows, cautiously."""
_HEAD_BYTES = 1 << 20


def workload(facts: Facts, *, working_um: float, tile_um: float, overlap_um: float) -> dict[str, float]:
    """Measures of a sample.

    Parameters
    ----------
    facts
        Of the raw folder.
    working_um, tile_um, overlap_um
        As the stage tile gets them, µm.

    Returns
    -------
    dict
        `mpx`: Mpixel of the mosaic; `stain_mpx`: of all stains of the network; `raw_mpx`: of all stains and planes that convert reads. `row_kpx`: thousand
        pixels of one row of all stains. `mtx`: million transcripts, roughly. `tile_mpx`, `tile_mtx`: working Mpixel of the network's stains, and million
        transcripts, in the region of a tile; `tile_plane_mpx`: of one stain.

    Raises
    ------
    InputError
        If the overlap is wider than half a window.
    """
    channels, height, width = facts.shape
    network = sum(c.role != "other" for c in facts.channels)
    grid = sample_grid(height, width, working_um / facts.pixel_size_um, working_um, overlap_um)
    n = grid.windows_across(tile_um, working_um)
    # An inner tile where there is one: those at the border are smaller.
    y0, x0, y1, x1 = grid.tile_region(*(min(1, (size - 1) // n) for size in grid.shape), n)
    area = (y1 - y0) * (x1 - x0)
    mpx = height * width / 1e6
    mtx = transcripts(facts.tables[0]) / 1e6
    return {
        "mpx": mpx,
        "stain_mpx": mpx * network,
        # Planes that are not chosen yet are all looked at.
        "raw_mpx": mpx * sum(len(c.planes) or max(len(facts.planes), 1) for c in facts.channels),
        "row_kpx": width * channels / 1e3,
        "mtx": mtx,
        "tile_mpx": area * network / 1e6,
        "tile_plane_mpx": area / 1e6,
        "tile_mtx": mtx * area / (grid.height * grid.width),
    }


def transcripts(table: Path) -> int:
    """Rows of a raw table: from its metadata, else by the length of its first lines."""
    if tables.is_parquet(table):
        return pq.read_metadata(table).num_rows
    packed = tables.is_gzip(table)
    with gzip.open(table) if packed else open(table, "rb") as stream:
        head = stream.read(_HEAD_BYTES)
    lines = head.count(b"\n")
    if len(head) < _HEAD_BYTES:
        return lines
    return round(lines / len(head) * table.stat().st_size * (GZIP_GROWTH if packed else 1))
