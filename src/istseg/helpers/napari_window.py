"""The window of `istseg view`: stains in colours, outlines in the colours of their flags, transcripts at hand.

A program of its own that imports nothing of istseg: it is run by the Python of an environment that has napari, and ours has not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import napari
import numpy as np
from napari_spatialdata import Interactive
from napari_spatialdata.constants import config
from qtpy.QtWidgets import QApplication
from spatialdata import SpatialData, get_pyramid_levels, read_zarr
from spatialdata.models import get_channel_names
from spatialdata.transformations import get_transformation

CELLS, LABELS, IMAGE, POINTS, TABLE, FRAME = "istseg_cells", "istseg_labels", "stains", "transcripts", "table", "global"
COLOURS = ("blue", "gray", "green", "magenta", "yellow", "cyan")
"""Of the stains, in their order: the nucleus stain is the first."""
TOLERANCE_UM = 0.1
"""That an outline on the screen may differ by: less than a pixel of the instruments, and a quarter of the points."""
MOST_OUTLINES, MOST_POINTS = 20_000, 1_000_000
"""napari draws more outlines by the minute, not the second; the label image has no such limit."""


def show(sdata: SpatialData, colours: dict[str, str]) -> Interactive:
    """A window with the layers of a sample, outlines in the colours of their flags; it is not started."""
    shown = Interactive(sdata, headless=True)
    viewer = shown._viewer
    _add_stains(viewer, sdata)
    table = sdata.tables[TABLE]
    flags = table.obs["qc_flag"]
    kinds = flags.cat.categories
    cells = None
    if CELLS in sdata.shapes and len(flags) <= MOST_OUTLINES:
        # napari-spatialdata would take corners off by 2 µm where there are more than 100 cells.
        config.POLYGON_THRESHOLD = MOST_OUTLINES
        sdata.shapes[CELLS]["geometry"] = sdata.shapes[CELLS].geometry.simplify(TOLERANCE_UM)
        cells = _add(shown, CELLS)
        cells.edge_color = [colours[flag] for flag in flags.set_axis(table.obs["label"]).loc[cells.metadata["indices"]]]
        cells.edge_width = 0.4
        cells.opacity = 1
    elif LABELS in sdata.labels:
        cells = _add(shown, LABELS)
    _add_transcripts(viewer, sdata)
    for layer in viewer.layers:
        layer.units = ("um",) * layer.ndim
    viewer.scale_bar.visible = True
    if cells is not None:
        # The panel beside the image asks the table of the layer that is chosen.
        viewer.layers.selection.active = cells
    counts = flags.value_counts()
    viewer.title = f"istseg: {', '.join(f'{counts[flag]} {flag}' for flag in kinds)}"
    viewer.reset_view()
    return shown


def _add_stains(viewer: napari.Viewer, sdata: SpatialData) -> None:
    """A layer for each stain, blended; limits are those of the smallest level."""
    image = sdata.images[IMAGE]
    levels = [level.data for level in get_pyramid_levels(image)] if hasattr(image, "children") else [image.data]
    affine = get_transformation(image, FRAME).to_affine_matrix(("y", "x"), ("y", "x"))
    for i, name in enumerate(get_channel_names(image)):
        low, high = np.percentile(np.asarray(levels[-1][i]), (1, 99.8))
        viewer.add_image(
            [level[i] for level in levels], name=str(name), affine=affine, blending="additive", colormap=COLOURS[i % len(COLOURS)],
            contrast_limits=(low, max(high, low + 1)), visible=i < 2,
        )  # fmt: skip


def _add_transcripts(viewer: napari.Viewer, sdata: SpatialData) -> None:
    """Flat and switched off; the panel of napari-spatialdata would draw them 6 µm wide, plane by plane."""
    molecules = sdata.points[POINTS]
    if len(molecules) > MOST_POINTS:
        return
    table = molecules[["x", "y", "gene"]].compute()
    affine = get_transformation(molecules, FRAME).to_affine_matrix(("y", "x"), ("y", "x"))
    genes = {"gene": table["gene"].astype(str).to_numpy()}
    viewer.add_points(table[["y", "x"]].to_numpy(), name=POINTS, affine=affine, size=0.8, border_width=0, features=genes, visible=False)


def _add(shown: Interactive, element: str) -> napari.layers.Layer:
    """Add an element with its table, so that the panels of napari-spatialdata can colour it by gene or column; threads make its layer."""
    shown.add_element(element=element, element_coordinate_system=FRAME)
    end = time.monotonic() + 600
    while (layer := shown.get_layer(element)) is None:
        if time.monotonic() > end:
            sys.exit(f"ERROR: napari-spatialdata made no layer of {element} in ten minutes.")
        QApplication.processEvents()
        time.sleep(0.02)
    return layer


def _wait(seconds: float) -> None:
    """Let the window draw."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()


def main() -> None:
    """Show a store; with --picture save what the window shows, and end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--colours", type=json.loads, required=True, help="flag -> colour, as JSON")
    parser.add_argument("--picture")
    options = parser.parse_args()
    shown = show(read_zarr(options.store), options.colours)
    if not options.picture:
        shown.run()
        return
    shown._viewer.window.resize(1400, 900)
    _wait(1)
    shown._viewer.reset_view()
    _wait(3)
    shown._viewer.screenshot(options.picture, canvas_only=False, flash=False)


if __name__ == "__main__":
    main()
