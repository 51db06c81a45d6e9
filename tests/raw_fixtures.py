"""Small raw folders of both platforms, written as the instruments write them, with truth to compare against."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

PIXEL_UM = 0.108


def real_data() -> Path:
    """Folder of the real samples; skips the test where it is absent."""
    folder = Path(os.environ.get("ISTSEG_REAL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("the real samples are not here (ISTSEG_REAL_DATA or ../shared/data)")
    return folder


def pattern(height: int, width: int, seed: int = 0, n: int = 24) -> np.ndarray:
    """uint16 picture with bright blobs and noise, asymmetric under every flip."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:height, :width]
    image = 200 + 100 * rng.random((height, width))
    for y, x in zip(rng.integers(0, height, n), rng.integers(0, width, n), strict=True):
        image += 6000 * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 60)
    return image.astype(np.uint16)


def merscope(
    root: Path,
    height: int = 300,
    width: int = 400,
    planes: int = 3,
    stains: tuple[str, ...] = ("DAPI", "Cellbound1", "PolyT"),
    n: int = 600,
    table: str = "csv",
    cells: str = "parquet",
    offset: tuple[float, float] = (100.0, 2000.0),
    seed: int = 0,
    tiff: dict | None = None,
) -> dict:
    """Write `root` as a MERSCOPE region; give the images {(stain, z): array}, the transcripts and the transform."""
    rng = np.random.default_rng(seed)
    folder = root / "images"
    folder.mkdir(parents=True)
    images = {}
    for i, stain in enumerate(stains):
        for z in range(planes):
            images[stain, z] = pattern(height, width, 10 * i + z)
            tifffile.imwrite(folder / f"mosaic_{stain}_z{z}.tif", images[stain, z], **(tiff or {}))
    scale = 1 / PIXEL_UM
    matrix = np.array([[scale, 0, -offset[0] * scale], [0, scale * 1.0001, -offset[1] * scale], [0, 0, 1]])
    np.savetxt(folder / "micron_to_mosaic_pixel_transform.csv", matrix)
    px, py = rng.uniform(0, width, n), rng.uniform(0, height, n)
    frame = pd.DataFrame(
        {
            "": rng.integers(0, 10**6, n),
            "barcode_id": 1,
            "global_x": (px - matrix[0, 2]) / matrix[0, 0],
            "global_y": (py - matrix[1, 2]) / matrix[1, 1],
            "global_z": rng.integers(0, planes, n).astype(float),
            "x": px,
            "y": py,
            "fov": 0,
            "gene": rng.choice(["Actb", "Gad1", "HLA-A/B", "Blank-1"], n, p=[0.5, 0.3, 0.15, 0.05]),
            "transcript_id": "T",
            "cell_id": rng.choice(["-1", "1878901234567890123"], n),
        }
    )
    write_table(frame, root / f"detected_transcripts.{table}")
    truth = {"images": images, "transcripts": frame, "matrix": matrix, "px": px, "py": py}
    if cells == "parquet":
        write_parquet_cells(root / "cell_boundaries.parquet", truth)
    if cells == "hdf5":
        write_hdf5_cells(root / "cell_boundaries", truth)
    return truth


def write_table(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        frame.astype({"gene": "category"} if "gene" in frame else {}).to_parquet(path, index=False)
    elif path.suffix == ".gz":
        with gzip.open(path, "wt") as stream:
            frame.to_csv(stream, index=False)
    else:
        frame.to_csv(path, index=False)


def squares_um(truth: dict, n: int = 5) -> list[np.ndarray]:
    """Corner rings (5, 2) in µm of n squares of 20 px."""
    m = truth["matrix"]
    rings = []
    for i in range(n):
        x0, y0 = 20 + 40 * i, 30 + 20 * i
        ring = np.array([[x0, y0], [x0 + 20, y0], [x0 + 20, y0 + 20], [x0, y0 + 20], [x0, y0]], float)
        rings.append((ring - m[:2, 2]) / [m[0, 0], m[1, 1]])
    return rings


def write_parquet_cells(path: Path, truth: dict, planes: tuple[int, ...] = (0, 1, 2), in_pixels: bool = False) -> None:
    import shapely

    rows = []
    for i, ring in enumerate(squares_um(truth)):
        for z in planes:
            ring_z = ring + [0, 0.01 * z]
            xy = ring_z * [truth["matrix"][0, 0], truth["matrix"][1, 1]] + truth["matrix"][:2, 2] if in_pixels else ring_z
            rows.append(
                {"ID": len(rows), "EntityID": 1878901234567890000 + i, "ZIndex": z, "Geometry": shapely.to_wkb(shapely.MultiPolygon([shapely.Polygon(xy)]))}
            )
    pd.DataFrame(rows).to_parquet(path, index=False)


def write_hdf5_cells(folder: Path, truth: dict) -> None:
    import h5py

    folder.mkdir(exist_ok=True)
    for fov in range(2):
        with h5py.File(folder / f"feature_data_{fov}.hdf5", "w") as stored:
            group = stored.create_group("featuredata")
            for i, ring in enumerate(squares_um(truth)[fov::2]):
                cell = group.create_group(f"1244361330215578701668675249054662127{fov}{i}")
                cell["z_coordinates"] = np.arange(3.0)
                for z in (0, 1) if i else (1,):
                    cell[f"zIndex_{z}/p_0/coordinates"] = ring[None]
                    if i == 1:
                        cell[f"zIndex_{z}/p_1/coordinates"] = (ring[None] - ring.mean(0)) * 0.3 + ring.mean(0) + [4.0, 0]


def cosmx(
    root: Path,
    generation: str = "C",
    frame: tuple[int, int] = (120, 160),
    grid: tuple[int, int] = (2, 2),
    flip: str = "y",
    labels: bool = True,
    images: str = "morphology",
    shift: float = 0.0,
    overlap: int = 0,
    pixel_um: float = 0.120280945,
    n: int = 400,
    polygons: bool = False,
    seed: int = 0,
) -> dict:
    """Write a CosMx slide cut from one known mosaic; give the mosaic (c, y, x), labels and the true mosaic place of every transcript.

    `flip`: how image rows and columns run against local coordinates; `x` is the export bug with images turned by 180°.
    """
    rng = np.random.default_rng(seed)
    h, w = frame
    step_y, step_x = h - overlap, w - overlap
    height, width = (grid[0] - 1) * step_y + h, (grid[1] - 1) * step_x + w
    mosaic = np.stack([pattern(height, width, seed + c, 60) for c in range(3)])
    label_mosaic = np.zeros((height, width), np.uint16)
    flip_rows, flip_columns = flip in ("y", "xy"), flip in ("x", "xy")
    image_dir = {"morphology": root / "CellStatsDir" / "Morphology2D", "composite": root / "CellComposite"}[images]
    image_dir.mkdir(parents=True)
    positions, tx, vertices = [], [], []
    cell_rings = []
    for gy in range(grid[0]):
        for gx in range(grid[1]):
            fov = 1 + gy * grid[1] + gx
            top, left = gy * step_y, gx * step_x
            local = np.zeros((h, w), np.uint16)
            for cell in range(1, 7):
                y, x = rng.integers(0, h - 24), rng.integers(0, w - 24)
                if not local[y : y + 24, x : x + 24].any():
                    local[y : y + 24, x : x + 24] = cell
            label_mosaic[top : top + h, left : left + w] = local
            picture = mosaic[:, top : top + h, left : left + w]
            _write_fov(image_dir, images, fov, picture, pixel_um)
            if labels:
                folder = root / "CellStatsDir" / f"FOV{fov:05d}"
                folder.mkdir(parents=True)
                tifffile.imwrite(folder / f"CellLabels_F{fov:05d}.tif", local, compression="zlib")
            # Half of the transcripts in cells, so that there is something to agree with.
            inside = np.argwhere(local > 0)
            pick = inside[rng.integers(0, len(inside), n // 2)] if len(inside) else np.empty((0, 2))
            py = np.r_[pick[:, 0] + rng.random(len(pick)), rng.uniform(0, h, n - len(pick))]
            px = np.r_[pick[:, 1] + rng.random(len(pick)), rng.uniform(0, w, n - len(pick))]
            cell_id = local[py.astype(int), px.astype(int)]
            y_local, x_local = (h - py if flip_rows else py), (w - px if flip_columns else px)
            tx.append(pd.DataFrame({"fov": fov, "cell_ID": cell_id, "x_local_px": x_local, "y_local_px": y_local, "true_x": left + px, "true_y": top + py}))
            positions.append((fov, top, left))
            for cell in np.unique(local[local > 0]):
                ys, xs = np.nonzero(local == cell)
                ring = np.array([[xs.min(), ys.min()], [xs.max() + 1, ys.min()], [xs.max() + 1, ys.max() + 1], [xs.min(), ys.max() + 1]], float)
                cell_rings.append((f"c_{fov}_{cell}", ring + [left, top]))
                vertices += [(fov, int(cell), w - x if flip_columns else x, h - y if flip_rows else y) for x, y in ring]
    table = pd.concat(tx, ignore_index=True)
    # Global coordinates: y_global grows with y_local in generation A, against it in B and C.
    sign_y = 1 if generation == "A" else -1
    origin = {fov: _origin(top, left, frame, flip_rows, flip_columns, sign_y) for fov, top, left in positions}
    table["x_global_px"] = table["x_local_px"] + table["fov"].map(lambda f: origin[f][0]) + 0.0
    table["y_global_px"] = sign_y * table["y_local_px"] + table["fov"].map(lambda f: origin[f][1]) + shift
    table["z"] = rng.integers(-1, 9, len(table))
    table["target"] = rng.choice(["KRT8", "HLA-A/B", "NegPrb3", "SystemControl12", "Negative01"], len(table), p=[0.6, 0.3, 0.04, 0.03, 0.03])
    table["CellComp"] = "Nuclear"
    truth = {"mosaic": mosaic, "labels": label_mosaic, "true": table[["true_x", "true_y"]].to_numpy(), "rings": cell_rings, "pixel_um": pixel_um}
    out = table.drop(columns=["true_x", "true_y"])
    truth["table"] = out
    suffix = "csv" if generation == "A" else "csv.gz"
    write_table(out, root / f"S1_tx_file.{suffix}")
    write_table(_positions(generation, origin, pixel_um), root / f"S1_fov_positions_file.{suffix}")
    if polygons:
        frame_ = pd.DataFrame(vertices, columns=["fov", "cellID", "x_local_px", "y_local_px"])
        frame_.insert(2, "cell", "c_1_" + frame_["fov"].astype(str) + "_" + frame_["cellID"].astype(str))
        write_table(frame_, root / f"S1-polygons.{suffix}")
    return truth


def _origin(top: int, left: int, frame: tuple[int, int], flip_rows: bool, flip_columns: bool, sign_y: int) -> tuple[float, float]:
    """Global coordinate of local 0: the global axes are those of the whole slide, offset by an odd amount."""
    h, w = frame
    x = -(left + w) if flip_columns else left
    # Rows of the image grow downwards; y_local grows upwards when rows are flipped, and y_global with sign_y · y_local.
    y = sign_y * (-(top + h) if flip_rows else top)
    return x + 1000.0, y - 70_000.0


def _positions(generation: str, origin: dict[int, tuple[float, float]], pixel_um: float) -> pd.DataFrame:
    frame = pd.DataFrame({"fov": list(origin), "x_global_px": [o[0] for o in origin.values()], "y_global_px": [o[1] for o in origin.values()]})
    if generation == "A":
        return frame
    mm = frame[["x_global_px", "y_global_px"]] * pixel_um / 1000
    if generation == "B":
        return pd.DataFrame(
            {"Slide": 1, "X_mm": mm["x_global_px"], "Y_mm": mm["y_global_px"], "Z_mm": 0.1, "ROI": 0, "FOV": frame["fov"], "Order": frame["fov"]}
        )
    return pd.DataFrame(
        {
            "FOV": frame["fov"],
            "x_global_px": frame["x_global_px"],
            "y_global_px": frame["y_global_px"],
            "x_global_mm": mm["x_global_px"],
            "y_global_mm": mm["y_global_px"],
        }
    )


def _write_fov(folder: Path, kind: str, fov: int, picture: np.ndarray, pixel_um: float) -> None:
    if kind == "composite":
        from PIL import Image

        rgb = np.stack([picture[1], picture[2], picture[0]], -1) >> 6
        Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).save(folder / f"CellComposite_F{fov:03d}.png")
        return
    reagents = [
        {"BiologicalTarget": "CD298/B2M", "Fluorophore": {"ChannelId": "B"}},
        {"BiologicalTarget": "PanCK", "Fluorophore": {"ChannelId": "G"}},
        {"BiologicalTarget": "DNA", "Fluorophore": {"ChannelId": "U"}},
    ]
    text = json.dumps({"ChannelOrder": "BGU", "PixelSize_um": pixel_um, "MorphologyKit": {"MorphologyReagents": reagents}})
    pages = np.stack([picture[1], picture[2], picture[0]])
    with tifffile.TiffWriter(folder / f"20240101_S1_F{fov:05d}.TIF") as tif:
        for i, page in enumerate(pages):
            tif.write(page, description=text if i == 0 else None, compression="lzw", rowsperstrip=16, metadata=None)


def xenium(
    root: Path,
    version: str = "xenium-3.0.0.15",
    height: int = 300,
    width: int = 400,
    n: int = 600,
    pixel_um: float = 0.2125,
    stains: tuple[str, ...] = ("DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin"),
    tiff: dict | None = None,
    seed: int = 0,
) -> dict:
    """Write `root` as the output of a Xenium region; `version` decides the form: XOA 1 has one image and ids as bytes or numbers."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    old, newest = "-1." in version, "-4." in version
    facts = {"pixel_size": pixel_um, "z_step_size": 3.0, "analysis_sw_version": version, "region_name": "R1", "major_version": 5}
    (root / "experiment.xenium").write_text(json.dumps(facts))
    stains = stains[:1] if old else stains
    images = {stain: pattern(height, width, 10 * i) for i, stain in enumerate(stains)}
    channels = "".join(f'<Channel ID="Channel:{i}" Name="{stain}"/>' for i, stain in enumerate(stains))
    text = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0">{channels}</Pixels></Image></OME>'
    if not old:
        (root / "morphology_focus").mkdir()
    for i, (stain, image) in enumerate(images.items()):
        new = root / "morphology_focus" / f"ch{i:04d}_{stain.lower().replace('/', '_')}.ome.tif"
        path = root / "morphology_focus.ome.tif" if old else new if newest else root / "morphology_focus" / f"morphology_focus_{i:04d}.ome.tif"
        options = {"tile": (128, 128), "compression": "jpeg2000", "compressionargs": {"reversible": True}, **(tiff or {})}
        with tifffile.TiffWriter(path) as tif:
            tif.write(image, subifds=1, description=text, metadata=None, **options)
            tif.write(image[::2, ::2], subfiletype=1, metadata=None, **options)
    px, py = rng.uniform(0, width, n), rng.uniform(0, height, n)
    cell = rng.choice(["aaaaaaab-1", "aaaaaaac-1", "UNASSIGNED"], n) if not old else rng.choice([1, 2, -1], n)
    gene = rng.choice(["EPCAM", "KRT8", "NegControlProbe_00042", "BLANK_0012", "UnassignedCodeword_0001"], n, p=[0.5, 0.4, 0.04, 0.03, 0.03])
    frame = pd.DataFrame(
        {
            "transcript_id": np.arange(n, dtype=np.uint64) + 281474976710656,
            "cell_id": cell,
            "overlaps_nucleus": 0,
            "feature_name": [g.encode() for g in gene] if old else gene,
            "x_location": (px * pixel_um).astype(np.float32),
            "y_location": (py * pixel_um).astype(np.float32),
            "z_location": rng.uniform(0, 12, n).astype(np.float32),
            "qv": rng.choice([40.0, 19.9], n, p=[0.9, 0.1]).astype(np.float32),
        }
    )
    frame.to_parquet(root / "transcripts.parquet", index=False)
    rings = {
        name: np.array([[x, 40], [x + 30, 40], [x + 30, 80], [x, 80], [x, 40]]) * pixel_um
        for name, x in zip(sorted({c for c in cell if str(c) not in ("UNASSIGNED", "-1")}), (20, 120), strict=False)
    }
    vertices = pd.DataFrame([(name, x, y) for name, ring in rings.items() for x, y in ring], columns=["cell_id", "vertex_x", "vertex_y"])
    vertices.to_parquet(root / "cell_boundaries.parquet", index=False)
    return {"images": images, "transcripts": frame.assign(feature_name=gene), "px": px, "py": py, "rings": rings}
