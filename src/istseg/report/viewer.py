"""The close look: a region's pictures as layers that can be switched, and the outlines of nuclei and cells above them, as one plotly figure."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from istseg.artifacts.metrics import FLAGS
from istseg.artifacts.regions import Region, Regions
from istseg.report import palette
from istseg.report.figures import Figure, packed
from istseg.report.pictures import data_uri

_HEIGHT = 720
_NUCLEI_COLOUR = "#40e0ff"
_APART = 1e-7
"""Plotly tells pictures apart by their place: those in the same place would be one."""


def figure(found: Regions, region: Region, folder: Path, layer_bytes: int, main: str) -> Figure:
    """The figure of one region; `layout.images` carries the layers in their order, each with its `name`.

    Parameters
    ----------
    folder
        With the pictures.
    layer_bytes
        Bytes that a picture may take.
    main
        Segmentation whose cells are coloured by flag and shown at first.

    Raises
    ------
    InputError
        If a picture is missing or broken.
    """
    left, top = region.corner_um
    side = found.side_px * found.um_per_px
    place = {"xref": "x", "yref": "y", "x": left, "y": top, "sizey": side, "sizing": "stretch", "layer": "below"}
    images = [
        {
            **place,
            "name": layer["name"],
            "source": data_uri(folder / layer["file"], layer_bytes, found.side_px, layer["colour"])[0],
            "sizex": side * (1 + k * _APART),
            # More colours than two at first would be hard to read.
            "visible": k < 2 and layer["role"] != "rna",
        }
        for k, layer in enumerate(region.layers)
    ]
    names = [o["name"] for o in region.outlines if o["kind"] == "cells"]
    traces = [trace for o in region.outlines for trace in _traces(o, found.um_per_px, (left, top), main, names)]
    axis = {"showgrid": False, "zeroline": False, "ticksuffix": " µm", "nticks": 5, "constrain": "domain"}
    said = ", ".join(f"{len(set(o['ids']))} of {o['name']}" for o in region.outlines)
    return {
        "data": traces,
        "layout": {
            "height": _HEIGHT, "margin": {"l": 70, "r": 10, "t": 10, "b": 40}, "images": images, "plot_bgcolor": "#000000", "dragmode": "pan",
            "hovermode": "closest", "xaxis": {**axis, "range": [left, left + side]},
            "yaxis": {**axis, "range": [top + side, top], "scaleanchor": "x"}, "legend": {"orientation": "v", "itemsizing": "constant"},
        },
        "alt": f"Square of {side:.0f} µm: {', '.join(layer['name'] for layer in region.layers)}; outlines: {said}.",
        "colours": [layer["colour"] or "conic-gradient(#f55, #fd5, #5f5, #5df, #55f, #f5f, #f55)" for layer in region.layers],
    }  # fmt: skip


def _traces(outlines: dict[str, Any], um_per_px: float, corner: tuple[float, float], main: str, names: list[str]) -> list[dict[str, Any]]:
    rings = [np.array(ring.replace(",", " ").split(), float).reshape(-1, 2) * um_per_px + corner for ring in outlines["rings"]]
    name = outlines["name"]
    if outlines["kind"] == "nuclei":
        return [_lines(rings, name, {"color": _NUCLEI_COLOUR, "width": 1})]
    if name != main or outlines["flags"] is None:
        colour, dash = palette.segmentation(name, names)
        shown = _lines(rings, name, {"color": colour, "width": 2, "dash": dash})
        return [shown if name == main else {**shown, "visible": "legendonly"}]
    flags = np.asarray(outlines["flags"], int)
    by_flag = [
        {**_lines([rings[k] for k in np.flatnonzero(flags == i)], f"{name}: {palette.FLAG_NAMES[flag]}", {"color": palette.FLAGS[flag], "width": 2})}
        for i, flag in enumerate(FLAGS)
        if (flags == i).any()
    ]
    middle = np.array([(ring.min(0) + ring.max(0)) / 2 for ring in rings]).reshape(-1, 2)
    told = [f"{escape(i)}<br>{palette.FLAG_NAMES[FLAGS[f]]}" for i, f in zip(outlines["ids"], flags, strict=True)]
    spots = {
        "type": "scatter", "mode": "markers", "x": packed(middle[:, 0]), "y": packed(middle[:, 1]), "showlegend": False,
        "marker": {"size": 12, "opacity": 0}, "text": told, "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    return [*by_flag, spots]


def _lines(rings: list[np.ndarray], name: str, line: dict[str, Any]) -> dict[str, Any]:
    """All rings as one line with gaps."""
    x, y = np.concatenate([np.append(ring, [[np.nan, np.nan]], 0) for ring in rings] or [np.zeros((0, 2))]).T
    return {"type": "scatter", "mode": "lines", "name": escape(name), "x": packed(x), "y": packed(y), "line": line, "hoverinfo": "skip"}
