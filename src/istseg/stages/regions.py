"""Stage `regions`: a few squares of a sample as layers (stains, RNA, nuclei, cells of all segmentations) for the report's viewer.

In: tiles, nuclei, cells of all segmentations, the assessed counts of the main one. Out: `regions/{regions.json, *.png}`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import anndata
import numpy as np
import shapely

from istseg.artifacts import cells as cells_file
from istseg.artifacts import gene_colours
from istseg.artifacts.files import whole
from istseg.artifacts.metrics import FLAGS
from istseg.artifacts.regions import Regions
from istseg.artifacts.sample import apply_affine
from istseg.artifacts.tiles import TileIndex
from istseg.errors import InputError
from istseg.qc import regions as squares
from istseg.qc.nuclei import valid_polygons

log = logging.getLogger(__name__)

REACH_UM = 60.0
"""A cell is looked for when its centroid lies so near a view: wider than the halo of a tile."""


def run(*, tiles: Path, nuclei: Path, cells: dict[str, Path], counts: Path, segmentation: str, out: Path, side_um: float, colours: Path | None = None) -> None:
    """Choose squares and write their layers to `out/regions`.

    Parameters
    ----------
    cells
        Segmentation → its `*.cells.parquet`.
    counts
        `counts.h5ad` of assess of `segmentation`, whose flags choose the squares and colour its cells.

    colours
        `gene_colours.csv` of `istseg coexpression`: the RNA is drawn in them.

    Raises
    ------
    InputError
        If the files do not belong together.
    """
    tiles = Path(tiles)
    index = TileIndex.read(tiles / "tiles.json")
    if segmentation not in cells:
        raise InputError(f"--cells: has no {segmentation}, only {', '.join(cells)}; give the cells of the segmentation of --counts too.")
    places = cells_file.read(cells[segmentation], geometry=False)
    flags = _flags(Path(counts), places["cell_id"].to_numpy(str))
    # A small sample is shown whole, not in the corner of a black square.
    side = min(max(round(side_um / index.working_um), 1), max(index.window_grid.height, index.window_grid.width))
    chosen = squares.choose(index, apply_affine(index.affine, places[["centroid_x_um", "centroid_y_um"]].to_numpy(float)), flags, side)
    flag_of = dict(zip(places["cell_id"], flags.tolist(), strict=True))
    views = [squares.view(index, square, side) for square in chosen]
    outlines = {name: _outlines(path, views, flag_of if name == segmentation else None) for name, path in {"nuclei": nuclei, **cells}.items()}
    palette = gene_colours.read(colours) if colours else None
    found = Regions(index.sample, side, index.working_um)
    with whole(Path(out) / "regions") as part:
        part.mkdir()
        for number, square in enumerate(chosen):
            shown = {name: in_views[number] for name, in_views in outlines.items()}
            found.regions.append(squares.draw(part, number, square, side, tiles, index, shown, palette))
        found.write(part / "regions.json")
    log.info("%s: %d regions for the viewer: %s", index.sample, len(found.regions), "; ".join(region.reason for region in found.regions))


def _outlines(path: Path, views: list[shapely.Polygon], flag_of: dict[str, int] | None) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """For each view, ids, polygons and flags of the cells or nuclei that touch it; others are not kept in memory."""
    if not views:
        return []
    table = cells_file.read(path, within=[view.buffer(REACH_UM).bounds for view in views])
    polygons, ids = valid_polygons(table.geometry), table["cell_id"].to_numpy(str)
    flags = None if flag_of is None else np.array([flag_of[i] for i in ids], int)
    touching = [shapely.intersects(polygons, view) for view in views]
    return [(ids[hit], polygons[hit], None if flags is None else flags[hit]) for hit in touching]


def _flags(counts: Path, ids: np.ndarray) -> np.ndarray:
    """(n,) place in `FLAGS` of the flag of each cell."""
    try:
        obs = anndata.read_h5ad(counts, backed="r").obs
    except (OSError, KeyError) as error:
        raise InputError(f"{counts}: cannot be read as AnnData ({error}); run assess again.") from None
    if "qc_flag" not in obs or obs["cell_id"].astype(str).tolist() != ids.tolist():
        raise InputError(f"{counts}: is not the counts.h5ad of the stage assess of these cells; run assess again.")
    return obs["qc_flag"].astype(str).map(FLAGS.index).to_numpy(int)
