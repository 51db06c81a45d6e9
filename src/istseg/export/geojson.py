"""GeoJSON as QuPath reads it: cells with their class and measurements, in full-resolution pixels of the image."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import shapely

from istseg.artifacts.files import whole
from istseg.artifacts.sample import apply_affine
from istseg.export.result import Result
from istseg.report import palette

COLOURS = {flag: list(bytes.fromhex(colour[1:])) for flag, colour in palette.FLAGS.items()}
"""Red, green and blue of each flag: those of the report."""
_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
_CHUNK = 5_000


def write(result: Result, path: Path) -> None:
    """Write one feature a line, streamed; ids follow from sample and cell, so the same result gives the same bytes."""
    sample = result.sample
    obs = result.table.obs
    numeric = [c for c in obs.columns if pd.api.types.is_numeric_dtype(obs[c]) and not pd.api.types.is_bool_dtype(obs[c])]
    flags = obs["qc_flag"].astype(str).to_numpy()
    reasons = obs["qc_reason"].astype(str).to_numpy()
    with whole(path) as part, open(part, "w", encoding="utf-8") as stream:
        stream.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for start in range(0, len(obs), _CHUNK):
            rows = slice(start, start + _CHUNK)
            pixels = shapely.transform(result.cells.geometry.to_numpy()[rows], lambda xy: np.round(apply_affine(sample.affine, xy), 2))
            measured = obs[numeric].iloc[rows].to_dict("records")
            for cell, polygon, flag, reason, values in zip(obs.index[rows], shapely.to_geojson(pixels), flags[rows], reasons[rows], measured, strict=True):
                feature = {
                    "type": "Feature",
                    "id": str(uuid.uuid5(_NAMESPACE, f"{sample.sample}/{cell}")),
                    "geometry": json.loads(polygon),
                    "properties": {
                        "objectType": "cell",
                        "name": cell,
                        "classification": {"name": flag, "color": COLOURS[flag]},
                        "metadata": {"qc_reason": reason, "sample": sample.sample},
                        # JSON has no NaN; QuPath shows a missing measurement as NaN itself.
                        "measurements": {k: round(float(v), 4) for k, v in values.items() if np.isfinite(v)},
                    },
                }
                stream.write(separator + json.dumps(feature, ensure_ascii=False))
                separator = ",\n"
        stream.write("\n]}\n")
