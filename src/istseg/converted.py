"""Reading a converted sample (`<sample>.zarr` and `sample.json`) as a stream: pixels box by box, transcripts batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from istseg.artifacts.sample import Sample, apply_affine
from istseg.errors import InputError
from istseg.grid import Box
from istseg.tissue import count_in_squares, grid_shape

_BATCH_ROWS = 1 << 18
_BAND_SLACK_UM = 1.0
_BETWEEN = {"transcript_id": np.int64, "y_um": np.float64, "x_um": np.float64, "code": np.int32, "is_control": bool}


class StainImage:
    """The multiscale image `images/stains` of `<sample>.zarr`, read box by box.

    Raises
    ------
    InputError
        If the image is missing or does not fit sample.json.

    """

    def __init__(self, store: Path, sample: Sample):
        import zarr

        self._channel = {stain.name: i for i, stain in enumerate(sample.stains)}
        where = f"{store}/images/stains"
        try:
            group = zarr.open_group(str(store), mode="r", path="images/stains")
            attributes = dict(group.attrs)
            datasets = attributes.get("ome", attributes)["multiscales"][0]["datasets"]
            self.levels = [group[d["path"]] for d in datasets]
        except (KeyError, IndexError, OSError, ValueError) as error:
            raise InputError(f"{where}: is not a multiscale image of the stage convert ({error!r}); run convert again.") from None
        expected = (len(sample.stains), sample.height_px, sample.width_px)
        if self.levels[0].shape != expected:
            raise InputError(f"{where}: has the shape {self.levels[0].shape}, sample.json says {expected}; the two do not belong together.")

    def read(self, stain: str, box: Box, level: int = 0) -> np.ndarray:
        """(y, x) grey values of a box of a level."""
        y0, x0, y1, x1 = box
        return np.asarray(self.levels[level][self._channel[stain], y0:y1, x0:x1])

    def shape(self, level: int) -> tuple[int, int]:
        """(height, width) of a level."""
        return self.levels[level].shape[-2:]

    def coarsest(self, height: float) -> int:
        """The coarsest level that still has `height` rows; the finest when none has."""
        return max((i for i in range(len(self.levels)) if self.shape(i)[0] >= height), default=0)


@dataclass
class Points:
    """The transcripts of `<sample>.zarr`, read part by part: part i holds band i in y.

    Raises
    ------
    InputError
        If a part is missing, or they hold more or fewer transcripts than sample.json says.

    """

    store: Path
    sample: Sample

    def __post_init__(self) -> None:
        folder = Path(self.store) / "points" / "transcripts" / "points.parquet"
        self.parts = [folder / f"part.{i}.parquet" for i in range(len(self.sample.transcript_bands_um))]
        missing = [
            f"{part}: no such file, but sample.json names {len(self.parts)} parts of transcripts; run convert again."
            for part in self.parts
            if not part.is_file()
        ]
        if missing and self.sample.transcripts.get("total", 0):
            raise InputError(missing)
        self.parts = [] if missing else self.parts
        held, known = sum(pq.read_metadata(part).num_rows for part in self.parts), self.sample.transcripts.get("total", 0)
        if held != known:
            raise InputError(f"{folder}: holds {held} transcripts, sample.json says {known}; the two do not belong together.")
        names = [*self.sample.genes, *self.sample.controls]
        self.categories = pd.Index(names)
        if not self.categories.is_unique:
            raise InputError(f"sample.json: names given twice among genes and controls: {sorted(self.categories[self.categories.duplicated()])[:5]}.")

    def batches(self, columns: list[str], band_um: tuple[float, float] = (-np.inf, np.inf)) -> Iterator[pa.RecordBatch]:
        """Batches of the parts that may hold points with a y in `band_um` (µm from the mosaic's top edge)."""
        ends = self.sample.transcript_bands_um
        for i, part in enumerate(self.parts):
            starts_below = i > 0 and ends[i - 1] - _BAND_SLACK_UM > band_um[1]
            ends_above = i < len(ends) - 1 and ends[i] + _BAND_SLACK_UM < band_um[0]
            if starts_below or ends_above:
                continue
            with pq.ParquetFile(part) as file:
                yield from file.iter_batches(_BATCH_ROWS, columns=columns)

    def codes(self, genes: pa.Array) -> np.ndarray:
        """int32: place of each gene in `categories`."""
        if not pa.types.is_dictionary(genes.type):
            genes = genes.dictionary_encode()
        table = self.categories.get_indexer(pd.Index(genes.dictionary.to_pylist()))
        used = np.asarray(genes.indices.to_numpy(zero_copy_only=False))
        codes = table[used] if len(used) else np.empty(0, np.int64)
        if (codes < 0).any():
            unknown = genes.dictionary.to_pylist()[int(used[codes < 0][0])]
            raise InputError(f"{self.store}: the transcripts name {unknown!r}, which sample.json knows neither as a gene nor as a control; run convert again.")
        return codes.astype(np.int32)

    def between(self, y0_um: float, y1_um: float) -> pd.DataFrame:
        """Transcripts with y in [y0, y1) µm from the mosaic's top edge, by transcript id.

        Columns `transcript_id` int64, `y_um`, `x_um` float64 from the mosaic's top left corner, `code` int32 place in `categories`, `is_control` bool.
        """
        parts = []
        for batch in self.batches(["transcript_id", "x", "y", "gene", "is_control"], (y0_um, y1_um)):
            at = apply_affine(self.sample.affine, np.column_stack([batch["x"].to_numpy(), batch["y"].to_numpy()])) * self.sample.pixel_size_um
            inside = np.flatnonzero((at[:, 1] >= y0_um) & (at[:, 1] < y1_um))
            columns = {
                "transcript_id": batch["transcript_id"].to_numpy()[inside],
                "y_um": at[inside, 1],
                "x_um": at[inside, 0],
                "code": self.codes(batch["gene"])[inside],
                "is_control": batch["is_control"].to_numpy(zero_copy_only=False)[inside],
            }
            parts.append(pd.DataFrame(columns))
        if not parts:
            return pd.DataFrame({name: np.empty(0, kind) for name, kind in _BETWEEN.items()})
        return pd.concat(parts, ignore_index=True).sort_values("transcript_id", ignore_index=True)

    def survey(self) -> tuple[np.ndarray, dict[str, int]]:
        """One pass over all transcripts, controls left out: int64 (rows, columns) numbers in the squares of `tissue`, and the number of each gene."""
        sample = self.sample
        shape = grid_shape(sample.size_um)
        counts = np.zeros(shape, np.int64)
        per_gene = np.zeros(len(self.categories), np.int64)
        for batch in self.batches(["x", "y", "gene", "is_control"]):
            genes = ~batch["is_control"].to_numpy(zero_copy_only=False)
            at = apply_affine(sample.affine, np.column_stack([batch["x"].to_numpy(), batch["y"].to_numpy()])[genes]) * sample.pixel_size_um
            counts += count_in_squares(at[:, 1], at[:, 0], shape)
            per_gene += np.bincount(self.codes(batch["gene"])[genes], minlength=len(per_gene))
        # Names of genes come first in the categories.
        return counts, dict(zip(sample.genes, per_gene.tolist(), strict=False))
