"""Xenium Explorer folder, by sopa's writer."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from istseg.artifacts.files import whole
from istseg.errors import InputError
from istseg.export.result import CELLS_KEY, GENE_COLUMN, IMAGE_KEY, POINTS_KEY, TABLE_KEY, Result
from istseg.export.store import add_elements

log = logging.getLogger(__name__)


def write(result: Result, folder: Path) -> None:
    """Write the folder whose `experiment.xenium` the Explorer opens, and `cell_ids.csv`, which tells the Explorer's name of each cell.

    sopa holds all transcripts in memory while it writes them; the image is written by tiles.

    Raises
    ------
    InputError
        If there are no cells: the Explorer cannot open a folder without any.
    """
    if not result.table.n_obs:
        raise InputError(f"{result.sample.sample}: has no cells, and the Xenium Explorer opens no folder without; leave `explorer` out of the formats.")
    import sopa.io.explorer
    from sopa.io.explorer.utils import str_cell_id
    from spatialdata import read_zarr

    sdata = read_zarr(result.store)
    add_elements(sdata, result)
    with whole(folder) as part:
        sopa.io.explorer.write(
            str(part), sdata, table_key=TABLE_KEY, image_key=IMAGE_KEY, shapes_key=CELLS_KEY, points_key=POINTS_KEY, gene_column=GENE_COLUMN,
            pixel_size=result.sample.pixel_size_um, run_name=result.sample.sample,
        )  # fmt: skip
        names = [str_cell_id(i) for i in range(result.table.n_obs)]
        pd.DataFrame({"explorer_id": names, "cell_id": result.table.obs_names}).to_csv(part / "cell_ids.csv", index=False)
