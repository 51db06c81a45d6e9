"""Xenium Explorer folder, by sopa's writer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import pandas as pd
import pyarrow.parquet as pq
import shapely

from istseg.artifacts.files import whole
from istseg.artifacts.sample import apply_affine
from istseg.artifacts.spatial import IMAGE, POINTS
from istseg.errors import InputError
from istseg.export.result import CELLS_KEY, TABLE_KEY, Result
from istseg.export.store import annotating_table

if TYPE_CHECKING:
    from spatialdata import SpatialData


_FRAME = "pixel"


def write(result: Result, folder: Path) -> None:
    """Write the folder whose `experiment.xenium` the Explorer opens, and `cell_ids.csv`, which tells the Explorer's name of each cell.

    Transcripts outside the image are left out, the Explorer's grid starts at the image's corner. sopa holds all transcripts in memory while it writes
    them; the image is written by tiles.

    Raises
    ------
    InputError
        If there are no cells: the Explorer cannot open a folder without any.

    """
    if not result.table.n_obs:
        raise InputError(f"{result.sample.sample}: has no cells, and the Xenium Explorer opens no folder without; leave `explorer` out of the formats.")
    import sopa.io.explorer
    from sopa.io.explorer.utils import str_cell_id

    with whole(folder) as part:
        sopa.io.explorer.write(
            str(part), _in_pixels(result), table_key=TABLE_KEY, image_key=IMAGE, shapes_key=CELLS_KEY, points_key=POINTS, gene_column="gene",
            pixel_size=result.sample.pixel_size_um, run_name=result.sample.sample,
        )  # fmt: skip
        # Its own call of this (sopa 2.2.11) hands the pixel size to another argument, and the Explorer would show a Xenium's scale.
        sopa.io.explorer.write_metadata(str(part), result.sample.sample, CELLS_KEY, result.table.n_obs, pixel_size=result.sample.pixel_size_um)
        names = [str_cell_id(i) for i in range(result.table.n_obs)]
        pd.DataFrame({"explorer_id": names, "cell_id": result.table.obs_names}).to_csv(part / "cell_ids.csv", index=False)


def _in_pixels(result: Result) -> SpatialData:
    """All elements in full-resolution pixels, so that sopa has nothing to transform: spatialdata transforms points of one partition only."""
    from spatialdata import SpatialData, read_zarr
    from spatialdata.models import PointsModel, ShapesModel
    from spatialdata.transformations import Identity, set_transformation

    sample = result.sample
    stored = read_zarr(result.store)
    image = stored.images[IMAGE]
    set_transformation(image, {_FRAME: Identity()}, set_all=True)
    identity = {_FRAME: Identity()}
    polygons = shapely.transform(result.cells.geometry.to_numpy(), lambda xy: apply_affine(sample.affine, xy))
    shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=polygons, index=result.entity_ids), transformations=dict(identity))

    molecules = pq.read_table(result.transcripts, columns=["x", "y", "gene"]).to_pandas()
    px = apply_affine(sample.affine, molecules[["x", "y"]].to_numpy())
    inside = ((px >= 0) & (px < [sample.width_px, sample.height_px])).all(axis=1)
    molecules = molecules.assign(x=px[:, 0], y=px[:, 1])[inside].reset_index(drop=True)
    points = PointsModel.parse(molecules, feature_key="gene", transformations=dict(identity))
    table = annotating_table(result)
    return SpatialData(images={IMAGE: image}, points={POINTS: points}, shapes={CELLS_KEY: shapes}, tables={TABLE_KEY: table})
