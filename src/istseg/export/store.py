"""SpatialData: the sample's store with the cells, nuclei, labels and the annotated table."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd

from istseg.artifacts import spatial
from istseg.artifacts.files import whole
from istseg.export.result import CELLS_KEY, LABELS_KEY, NUCLEI_KEY, TABLE_KEY, Result

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger(__name__)


def write(result: Result, path: Path) -> None:
    """Write a store that stands by itself: image, points and vendor cells of `convert` with ours beside them.

    The files of `convert` are taken over as they are: as hard links where the file system allows it, so that no pixel is decoded or doubled, else as
    copies. Files of metadata are always copied, because adding elements changes them.
    """
    import anndata
    from spatialdata import read_zarr

    # The matrix of a large sample would be thousands of files.
    with whole(path) as part, anndata.settings.override(auto_shard_zarr_v3=True):
        _take_over(result.store, part)
        sdata = read_zarr(part)
        for key in add_elements(sdata, result):
            sdata.write_element(key, overwrite=True)
        _write_labels(result, part)
        sdata.write_consolidated_metadata()


def _take_over(source: Path, target: Path) -> None:
    def link_or_copy(src: str, dst: str) -> str:
        if os.path.basename(src) in ("zarr.json", "zmetadata", ".zmetadata", ".zattrs", ".zgroup"):
            return shutil.copy2(src, dst)
        try:
            os.link(os.path.realpath(src), dst)
        except OSError:
            shutil.copy2(src, dst)
        return dst

    shutil.copytree(source, target, copy_function=link_or_copy)


def add_elements(sdata: SpatialData, result: Result) -> list[str]:
    """Put our shapes and our table into a SpatialData object in memory; gives their keys.

    They take the coordinate systems of the points, which are in µm as well. Without cells there are no shapes and the table annotates nothing.
    """
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    frames = get_transformation(sdata.points[spatial.POINTS], get_all=True)
    added = []
    numbers = {CELLS_KEY: result.entity_ids, NUCLEI_KEY: np.arange(1, len(result.nuclei) + 1)}
    for key, frame in ((CELLS_KEY, result.cells), (NUCLEI_KEY, result.nuclei)):
        if not len(frame):
            log.warning("%s: there are no %s to export", result.sample.sample, key)
            continue
        columns = {"cell_id": frame["cell_id"].to_numpy(dtype=object), "area_um2": frame["area_um2"].to_numpy()}
        # Numbers, not names: napari-spatialdata shows no shapes whose index is text, and the label image has the same numbers.
        shapes = gpd.GeoDataFrame(columns, geometry=frame.geometry.to_list(), index=numbers[key])
        sdata.shapes[key] = ShapesModel.parse(shapes, transformations=dict(frames))
        added.append(key)
    sdata.tables[TABLE_KEY] = annotating_table(result)
    return [*added, TABLE_KEY]


def annotating_table(result: Result) -> AnnData:
    """The table as spatialdata wants it, annotating the cells by `label`, their number; annotating nothing where there are no cells."""
    from spatialdata.models import TableModel

    table = result.table.copy()
    if not table.n_obs:
        return TableModel.parse(table)
    table.obs["label"] = result.entity_ids
    table.obs["region"] = pd.Categorical([CELLS_KEY] * table.n_obs)
    return TableModel.parse(table, region=CELLS_KEY, region_key="region", instance_key="label")


def _write_labels(result: Result, store: Path) -> None:
    labels = result.label_image()
    if labels is not None:
        spatial.write_labels(store, LABELS_KEY, labels, np.linalg.inv(np.asarray(labels.attrs["micron_to_working"], float)))
