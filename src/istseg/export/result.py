"""What every format is written from: the final elements of one sample."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np

from istseg.artifacts import cells as cells_file
from istseg.artifacts.sample import Sample
from istseg.errors import InputError

if TYPE_CHECKING:
    import zarr
    from anndata import AnnData

SEGMENTATION = "istseg"
CELLS_KEY, NUCLEI_KEY, LABELS_KEY, TABLE_KEY = "istseg_cells", "nuclei", "istseg_labels", "table"


@dataclass
class Result:
    """Final elements of a sample.

    Attributes
    ----------
    store
        `<sample>.zarr` of convert.
    cells, nuclei
        Polygons in µm; the cells in the order of the table.
    table
        `counts.h5ad` with flags.
    labels
        `labels.zarr` of merge; None where merge wrote none.
    transcripts
        `transcripts.parquet` of assign.

    """

    sample: Sample
    store: Path
    cells: gpd.GeoDataFrame
    nuclei: gpd.GeoDataFrame
    table: AnnData
    labels: Path | None
    transcripts: Path

    @classmethod
    def read(cls, sample_json: Path, store: Path, merged: Path, assessed: Path, transcripts: Path) -> Result:
        """Read and check that all are of one sample.

        Raises
        ------
        InputError
            If a file is missing, the cells and the table differ, or the table is of another sample.

        """
        import anndata

        merged = Path(merged)
        sample, cells = Sample.read(sample_json), cells_file.read(merged / f"{SEGMENTATION}.cells.parquet")
        path = Path(assessed) / "counts.h5ad"
        if not path.exists():
            raise InputError(f"{path}: no such file; it should be the counts of the stage assess.")
        table = anndata.read_h5ad(path)
        if table.obs_names.tolist() != cells["cell_id"].tolist():
            raise InputError(f"{path}: its cells are not those of {merged}/{SEGMENTATION}.cells.parquet; run assign and assess on these cells.")
        named = sorted(set(table.obs["sample"].astype(str)))
        if named not in ([], [sample.sample]):
            raise InputError(f"{path}: is of the sample {', '.join(named)}, {sample_json} of {sample.sample}; give files of one sample.")
        labels = merged / "labels.zarr"
        return cls(sample, Path(store), cells, cells_file.read(merged / "nuclei.parquet"), table, labels if labels.exists() else None, Path(transcripts))

    @property
    def controls(self) -> list[str]:
        """Names of the columns of `table.obsm["controls"]`."""
        return json.loads(self.table.uns["istseg"]["controls"])

    @property
    def entity_ids(self) -> np.ndarray:
        """int64 (cells,): a number of each cell: its label, or its place where the segmentation has no labels."""
        labels = self.cells["label"].to_numpy(np.int64)
        return labels if len(labels) and labels.min() > 0 and len(np.unique(labels)) == len(labels) else np.arange(1, len(labels) + 1, dtype=np.int64)

    def label_image(self) -> zarr.Array | None:
        """The cells as a label image (y, x) int32 at working resolution, with the attribute `micron_to_working`; None where there is none."""
        import zarr

        if self.labels is None:
            return None
        group = zarr.open_group(self.labels, mode="r")
        return group.get(SEGMENTATION)
