"""Objects of one tile as label images: what `teach` and `segment` give, by layer.

A folder `<tile_id>/` holds `labels.npz` (one int32 array (y, x) per layer over the tile's *region*; 0 is background), `objects.parquet` (one row per
object of each layer) and `meta.json`. Objects that lie in the region but belong to another tile are in the label image too (curation and QC
near the border need them); `owned` tells them apart.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from istseg.artifacts.contours import outlines
from istseg.artifacts.files import read_json, whole, write_json
from istseg.errors import InputError
from istseg.grid import Box

OBJECT_COLUMNS = ["layer", "label", "owned", "centroid_x_wpx", "centroid_y_wpx", "area_wpx", "cut", "mean_flow", "mean_logit", "geometry"]
"""`centroid_*` are those of the pixel centres, in the sample's working frame. `cut`: touches the border of the region inside the mosaic, so it may be
incomplete. `mean_flow`, `mean_logit`: NaN where the method has none. `geometry`: WKB polygon, sample's working frame, only of owned objects (else None)."""


@dataclass
class TileLabels:
    """Label images of one tile.

    Attributes
    ----------
    layers
        Name → int32 (y, x) over `region`.
    objects
        Columns `OBJECT_COLUMNS`.
    method
        How they were made: teacher or model, its hash, parameters, device.
    """

    sample: str
    tile_id: str
    core: Box
    region: Box
    layers: dict[str, np.ndarray]
    objects: pd.DataFrame
    method: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: str | Path, late: Callable[[], dict[str, Any]] = dict, **extra_json: dict[str, Any]) -> None:
        """Write the folder; `late` gives entries of `method` that are known when the arrays are written, such as the seconds that this took;
        `extra_json` values are written beside as `<key>.json`.
        """
        with whole(folder) as part:
            part.mkdir()
            _write_layers(part / "labels.npz", self.layers)
            self.objects[OBJECT_COLUMNS].to_parquet(part / "objects.parquet", index=False)
            meta = {k: v for k, v in asdict_light(self).items() if k not in ("layers", "objects")}
            meta["method"] = self.method | late()
            write_json(part / "meta.json", {**meta, "layer_names": list(self.layers)})
            for name, value in extra_json.items():
                write_json(part / f"{name}.json", value)

    @classmethod
    def read(cls, folder: str | Path, layers: list[str] | None = None) -> TileLabels:
        """Read a folder; only the given layers when `layers` is set."""
        folder = Path(folder)
        meta = read_json(folder / "meta.json", "the meta.json of the stages teach or segment")
        arrays = read_layers(folder, meta["layer_names"] if layers is None else layers)
        objects = pd.read_parquet(folder / "objects.parquet")
        objects = objects[objects["layer"].isin(arrays)]
        return cls(meta["sample"], meta["tile_id"], tuple(meta["core"]), tuple(meta["region"]), arrays, objects, meta["method"])


def _write_layers(path: Path, layers: dict[str, np.ndarray]) -> None:
    """As `np.savez_compressed`, at the fastest level: a third of the time, and label images still shrink to a thirtieth."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, labels in layers.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, labels.astype(np.int32, copy=False), allow_pickle=False)


def read_layers(folder: Path, layers: list[str]) -> dict[str, np.ndarray]:
    """Label images of a folder alone.

    Raises
    ------
    InputError
        If it has no such layer.
    """
    with np.load(folder / "labels.npz", allow_pickle=False) as stored:
        if missing := set(layers) - set(stored.files):
            raise InputError(f"{folder}/labels.npz: has no layer {sorted(missing)}, only {sorted(stored.files)}.")
        return {name: stored[name] for name in layers}


def asdict_light(labels: TileLabels) -> dict[str, Any]:
    """The fields without copying the arrays."""
    return {k: getattr(labels, k) for k in labels.__dataclass_fields__}


def describe(
    layer: str,
    labels: np.ndarray,
    core: Box,
    region: Box,
    mosaic: tuple[int, int],
    mean_flow: np.ndarray | None = None,
    mean_logit: np.ndarray | None = None,
) -> pd.DataFrame:
    """Table of the objects of one label image.

    Parameters
    ----------
    labels
        int32 (y, x) over the region; any positive numbers.
    core, region
        In working pixels of the sample. The object whose centroid lies in the core (half-open) is owned.
    mosaic
        (height, width) of the sample in working pixels: an object that touches the mosaic's edge is not `cut`.
    mean_flow, mean_logit
        (n,) for the objects by label; None where the method has none.

    Returns
    -------
    DataFrame with `OBJECT_COLUMNS`, one row per label, by label.
    """
    value, y, x, length = _runs(labels)
    key, ids = pd.factorize(value, sort=True)
    n = len(ids)

    def sum_of(values: np.ndarray) -> np.ndarray:
        return np.bincount(key, weights=values, minlength=n)

    # Sums of integers below 2^53 are exact in any order: the centroid, and so the owner, is the same in every tile.
    area = sum_of(length)
    middle = 2 * x + length - 1
    cy, cx = sum_of((y + region[0]) * length) / area + 0.5, sum_of((middle + 2 * region[1]) * length // 2) / area + 0.5
    owned = (cy >= core[0]) & (cy < core[2]) & (cx >= core[1]) & (cx < core[3])
    cut = np.zeros(n, bool)
    for edge, inside in (
        (labels[0], region[0] > 0),
        (labels[-1], region[2] < mosaic[0]),
        (labels[:, 0], region[1] > 0),
        (labels[:, -1], region[3] < mosaic[1]),
    ):
        if inside:
            cut |= np.isin(ids, edge)
    table = pd.DataFrame(
        {
            "layer": layer,
            "label": ids.astype(np.int32),
            "owned": owned,
            "centroid_x_wpx": cx,
            "centroid_y_wpx": cy,
            "area_wpx": area.astype(np.int32),
            "cut": cut,
            "mean_flow": np.full(n, np.nan) if mean_flow is None else mean_flow,
            "mean_logit": np.full(n, np.nan) if mean_logit is None else mean_logit,
        }
    )
    found, polygons = outlines(labels, table.loc[table["owned"], "label"].to_numpy(), offset=region[:2], smooth=True)
    geometry = np.full(len(table), None, object)
    geometry[np.searchsorted(table["label"], found)] = shapely.to_wkb(polygons)
    table["geometry"] = geometry
    return table[OBJECT_COLUMNS]


def _runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Label, row, first column and length of each run of one label along a row, background left out: fifty times fewer than pixels."""
    begins = np.ones(labels.shape, bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=begins[:, 1:])
    at = np.flatnonzero(begins)
    length = np.diff(np.append(at, labels.size))
    value = labels.ravel()[at]
    of_object = value > 0
    y, x = np.divmod(at[of_object], labels.shape[1])
    return value[of_object], y, x, length[of_object]


def outlines_of(labels: np.ndarray, wanted: np.ndarray, offset: tuple[int, int] = (0, 0)) -> dict[int, shapely.Polygon]:
    """Label → polygon of each wanted label of a label image; see `artifacts.contours.outlines`."""
    found, polygons = outlines(labels, wanted, offset)
    return dict(zip(found.tolist(), polygons, strict=True))
