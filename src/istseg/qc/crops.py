"""`crops/*.png`: examples of cells by flag, cut from the tiles."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import shapely

from istseg.artifacts import gene_colours
from istseg.artifacts.files import whole
from istseg.artifacts.sample import apply_affine
from istseg.artifacts.tiles import Tile, TileIndex
from istseg.qc import drawing, measure

SIDE_UM = 36.0
_MAX_SIDE_UM = 90.0
_SIDE_PX = 432


def choose(obs: pd.DataFrame, owner: np.ndarray, n_per_flag: int, seed: int) -> np.ndarray:
    """Rows of the examples: up to `n_per_flag` of each flag at random, its reasons in turn; only cells inside a tile.

    The choice depends on the seed and the cells only.
    """
    rng = np.random.default_rng(seed)
    draw = pd.DataFrame({"flag": obs["qc_flag"].cat.codes.to_numpy(), "reason": obs["qc_reason"].cat.codes.to_numpy(), "order": rng.permutation(len(obs))})
    draw = draw[owner >= 0].sort_values("order")
    draw["turn"] = draw.groupby("reason").cumcount()
    draw = draw.sort_values(["flag", "turn", "reason"])
    return draw.groupby("flag").head(n_per_flag).index.to_numpy()


def draw(
    folder: Path,
    tiles: Path,
    index: TileIndex,
    obs: pd.DataFrame,
    polygons: tuple[np.ndarray, np.ndarray],
    n_per_flag: int,
    seed: int,
    colours: pd.DataFrame | None = None,
) -> list[dict[str, str]]:
    """Write one picture per example into `folder` (replaced as a whole, made also when empty); gives `{"file", "cell_id", "flag", "reason"}` of each, by flag.

    A picture shows the stains, the transcripts (controls left out), the nuclei, the neighbours' contours, the cell's contour and a scale bar.

    Parameters
    ----------
    obs
        One row per cell with `cell_id`, centroids, `qc_flag`, `qc_reason`.
    polygons
        Valid polygons of the cells and of the nuclei, µm.
    colours
        Of genes (`artifacts.gene_colours`): a transcript has that of its gene.

    """
    cells, nuclei = polygons
    owner = measure.owners(index, obs[["centroid_x_um", "centroid_y_um"]].to_numpy())
    rows = choose(obs, owner, n_per_flag, seed)
    trees = shapely.STRtree(cells), shapely.STRtree(nuclei)
    files: dict[int, str] = {}
    number = {row: i for i, row in enumerate(rows.tolist())}
    with whole(folder) as part:
        part.mkdir()
        for t in np.unique(owner[rows]):
            tile = Tile.read(tiles / index.tiles[t]["tile_id"])
            points = tile.transcripts(["x_wpx", "y_wpx", "gene", "is_control"])
            points = points[~points["is_control"]]
            inks = None if colours is None else gene_colours.of(colours, points["gene"].cat.categories)[points["gene"].cat.codes]
            xy = points[["x_wpx", "y_wpx"]].to_numpy(float)
            for row in rows[owner[rows] == t].tolist():
                files[row] = f"{obs['qc_flag'].iloc[row]}_{number[row]:02d}.png"
                drawing.write_png(part / files[row], _picture(tile, (xy, inks), cells, nuclei, trees, row))
    chosen = obs.iloc[rows]
    return [
        {"file": f"{folder.name}/{files[row]}", "cell_id": str(cell), "flag": str(flag), "reason": str(reason)}
        for row, cell, flag, reason in zip(rows.tolist(), chosen["cell_id"], chosen["qc_flag"], chosen["qc_reason"], strict=True)
    ]


def _picture(
    tile: Tile,
    molecules: tuple[np.ndarray, np.ndarray | None],
    cells: np.ndarray,
    nuclei: np.ndarray,
    trees: tuple[shapely.STRtree, shapely.STRtree],
    row: int,
) -> np.ndarray:
    """Picture of one cell; `molecules` are the places of the tile's transcripts and their colours."""
    xy, inks = molecules
    bounds = shapely.bounds(shapely.transform(cells[row], lambda c: apply_affine(tile.affine, c)))
    extent = float(max(bounds[2] - bounds[0], bounds[3] - bounds[1])) * tile.working_um
    side = round(min(max(SIDE_UM, 1.5 * extent), _MAX_SIDE_UM) / tile.working_um)
    left, top = (int(np.floor((bounds[i] + bounds[i + 2]) / 2 - side / 2)) for i in (0, 1))
    zoom = _SIDE_PX / side
    stains = _window(tile, top, left, side)
    picture = cv2.resize(drawing.composite(stains[0], stains[1:]), (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_LINEAR)
    matrix = np.diag([zoom, zoom, 1.0]) @ np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]]) @ tile.affine

    def to_picture(shapes: np.ndarray) -> np.ndarray:
        return shapely.transform(shapes, lambda c: apply_affine(matrix, c))

    corners = apply_affine(np.linalg.inv(matrix), np.array([[0, 0], [_SIDE_PX, _SIDE_PX]]))
    view = shapely.box(*corners.min(axis=0), *corners.max(axis=0))
    neighbours = np.setdiff1d(trees[0].query(view), [row])
    shown = (xy - [left, top]) * zoom
    inside = ((shown >= 0) & (shown < _SIDE_PX)).all(axis=1)
    drawing.molecules(picture, shown[inside], None if inks is None else inks[inside])
    drawing.contours(picture, to_picture(cells[neighbours]), drawing.NEIGHBOUR)
    drawing.contours(picture, to_picture(nuclei[np.sort(trees[1].query(view))]), drawing.NUCLEUS)
    drawing.contours(picture, to_picture(cells[[row]]), drawing.CELL, thickness=2)
    return drawing.scale_bar(picture, tile.working_um / zoom)


def _window(tile: Tile, top: int, left: int, side: int) -> np.ndarray:
    """(c, side, side) float32 normalised stains, black where the window leaves the tile's region."""
    y0, x0 = max(top, tile.region[0]), max(left, tile.region[1])
    y1, x1 = min(top + side, tile.region[2]), min(left + side, tile.region[3])
    stains = np.zeros((len(tile.stains), side, side), np.float32)
    stains[:, y0 - top : y1 - top, x0 - left : x1 - left] = tile.normalised((y0, x0, y1, x1))
    return stains
