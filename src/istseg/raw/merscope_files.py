"""The files of a MERSCOPE region: where they are, what they say, and whether they fit together. Problems and warnings are collected."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from istseg.errors import InputError
from istseg.raw import tables, tiffs

IMAGE = re.compile(r"mosaic_(?P<stain>.+)_z(?P<z>[0-9]{1,4})\.tiff?", re.IGNORECASE)
TRANSFORM = "micron_to_mosaic_pixel_transform.csv"
TRANSCRIPT_FILES = ("detected_transcripts.parquet", "detected_transcripts.csv", "detected_transcripts.csv.gz")
_MAX_SHEAR = 1e-4
_MAX_ANISOTROPY = 0.02


def find_region(root: Path) -> Path:
    """The region folder: `root` itself or the only region below it.

    Raises
    ------
    InputError
        If there is none or more than one.
    """
    try:
        if not root.exists():
            raise InputError(f"{root}: no such folder. Is the path in the samplesheet right?")
        if not root.is_dir():
            raise InputError(f"{root}: is a file; give the region folder of the run.")
        entries = sorted(root.iterdir())
        if any(_is_region_part(entry) for entry in entries):
            return root
        regions = [e for e in entries if e.is_dir() and any(_is_region_part(inner) for inner in sorted(e.iterdir()))]
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror or error}). Check the link and the permissions.") from None
    if len(regions) == 1:
        return regions[0]
    if regions:
        raise InputError(
            f"{root}: holds several regions ({', '.join(r.name for r in regions)}). One row of the samplesheet is one region: give its folder as path."
        )
    listing = ", ".join(e.name for e in entries[:8]) or "nothing"
    raise InputError(f"{root}: is not a MERSCOPE region: there is no `images` folder and no detected_transcripts table. It holds: {listing}.")


def _is_region_part(entry: Path) -> bool:
    return entry.name in TRANSCRIPT_FILES or (entry.name == "images" and entry.is_dir())


def find_images(region: Path, problems: list[str], warnings: list[str]) -> dict[tuple[str, int], tiffs.PageInfo]:
    """The first page of the image of each stain and plane."""
    folder = region / "images"
    pages: dict[tuple[str, int], tiffs.PageInfo] = {}
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        problems.append(f"{folder}: cannot be read ({error.strerror}). A region needs its folder of mosaic images.")
        return {}
    ignored = []
    found = 0
    for path in files:
        match = IMAGE.fullmatch(path.name)
        if not match:
            ignored += [path.name] if path.suffix.lower() in (".tif", ".tiff") else []
            continue
        found += 1
        key = match["stain"], int(match["z"])
        if key in pages:
            problems.append(f"{path}: is a second image of stain {key[0]}, plane {key[1]} beside {pages[key].path.name}; keep one.")
            continue
        read = tiffs.inspect(path, problems)
        if len(read) > 1:
            warnings.append(f"{path.name} has {len(read)} pages; the first is used.")
        if read:
            pages[key] = read[0]
    if not found:
        problems.append(f"{folder}: holds no image named mosaic_<stain>_z<plane>.tif.")
    if ignored:
        warnings.append(f"Images with other names were left out: {', '.join(ignored[:5])}{' ...' if len(ignored) > 5 else ''}.")
    return pages


def mosaic_shape(pages: dict[tuple[str, int], tiffs.PageInfo], problems: list[str]) -> tuple[int, int] | None:
    """(height, width) of all images; None with the reason in `problems` where they differ."""
    shapes: dict[tuple[int, int], list[str]] = {}
    for page in pages.values():
        shapes.setdefault(page.shape, []).append(page.path.name)
    if len(shapes) > 1:
        listing = "; ".join(f"{h} x {w}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" for (h, w), names in shapes.items())
        problems.append(f"{next(iter(pages.values())).path.parent}: the mosaics differ in size ({listing}). All images of a region must have one size.")
    return next(iter(shapes)) if len(shapes) == 1 else None


def read_transform(path: Path, problems: list[str]) -> np.ndarray | None:
    """(3, 3) µm → mosaic pixel; None with the reason in `problems`. Rotations and flips do not occur and are refused."""
    try:
        rows = [re.split(r"[\s,]+", line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        matrix = np.array(rows, float)
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}). It is needed to place transcripts on the image and is never assumed.")
        return None
    except (ValueError, UnicodeDecodeError):
        problems.append(f"{path}: is not a matrix of 3 x 3 numbers separated by blanks.")
        return None
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        problems.append(f"{path}: must be a matrix of 3 x 3 finite numbers, its shape is {matrix.shape}.")
        return None
    scale_x, scale_y = matrix[0, 0], matrix[1, 1]
    if not np.allclose(matrix[2], [0, 0, 1]):
        problems.append(f"{path}: the last row must be 0 0 1, it is {matrix[2].tolist()}.")
        return None
    if max(abs(matrix[0, 1]), abs(matrix[1, 0])) > _MAX_SHEAR * max(abs(scale_x), abs(scale_y), 1e-9):
        problems.append(f"{path}: contains a rotation or shear ({matrix[:2, :2].tolist()}), which is not supported; export the region without rotation.")
        return None
    if scale_x <= 0 or scale_y <= 0:
        problems.append(f"{path}: contains a flip or a zero scale (x {scale_x:g}, y {scale_y:g}), which is not supported.")
        return None
    if not 0.2 <= scale_x <= 100 or abs(scale_x / scale_y - 1) > _MAX_ANISOTROPY:
        problems.append(f"{path}: the scale (x {scale_x:g}, y {scale_y:g} pixels per µm) is not that of an image; MERSCOPE has about 9.26 in both.")
        return None
    return matrix


def compare_manifest(path: Path, matrix: np.ndarray, shape: tuple[int, int], problems: list[str], warnings: list[str]) -> None:
    """Whether the manifest, where there is one, says the size of the images and of a pixel that they and the transform say."""
    if not path.exists():
        return
    try:
        manifest = json.loads(path.read_text())
        size = manifest.get("mosaic_height_pixels"), manifest.get("mosaic_width_pixels")
        pixel = manifest.get("microns_per_pixel")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        warnings.append(f"manifest.json cannot be read ({error}); the transform and the images are used.")
        return
    if None not in size and tuple(size) != shape:
        problems.append(f"{path}: says {size[0]} x {size[1]} pixels, the images have {shape[0]} x {shape[1]}. The folder mixes files of two exports.")
    if isinstance(pixel, (int, float)) and abs(pixel * matrix[0, 0] - 1) > 0.01:
        warnings.append(f"manifest.json says {pixel} µm per pixel, the transform {1 / matrix[0, 0]:.5f}; the transform is used.")


def find_transcripts(region: Path, problems: list[str]) -> Path | None:
    """The only table of transcripts; None with the reason in `problems`."""
    found = [region / name for name in TRANSCRIPT_FILES if (region / name).exists() or (region / name).is_symlink()]
    if not found:
        problems.append(f"{region}: has no transcript table; expected one of {', '.join(TRANSCRIPT_FILES)}.")
        return None
    if len(found) > 1:
        problems.append(f"{region}: has several transcript tables ({', '.join(f.name for f in found)}); keep one.")
        return None
    return found[0]


def transcript_columns(path: Path, problems: list[str]) -> dict[str, str]:
    """Names of the columns x, y, z, gene, cell and fov in a table of transcripts, those that it has; none where one of x, y and gene is missing."""
    try:
        names = tables.header(path)
    except InputError as error:
        problems += error.problems
        return {}
    wanted = {"x": ("global_x",), "y": ("global_y",), "z": ("global_z",), "gene": ("gene",), "cell": ("cell_id", "EntityID"), "fov": ("fov",)}
    columns = {key: tables.find_column(names, *options) for key, options in wanted.items()}
    missing = [wanted[key][0] for key in ("x", "y", "gene") if columns[key] is None]
    if missing:
        problems.append(f"{path}: lacks the columns {', '.join(missing)}; it has {', '.join(names[:12])}.")
        return {}
    return {key: column for key, column in columns.items() if column}


def find_cells(region: Path) -> tuple[Path | None, list[str]]:
    """Vendor cells: GeoParquet under one of its names (microns before pixels), else a folder of hdf5 files."""
    for pattern in ("cell_boundaries.parquet", "*micron_space.parquet", "*mosaic_space.parquet"):
        for folder in (region, region / "cell_boundaries"):
            found = sorted(folder.glob(pattern)) if folder.is_dir() else []
            if len(found) > 1:
                return None, [f"{folder}: several files of vendor cells ({', '.join(f.name for f in found)}); keep the one to compare with."]
            if found:
                return found[0], []
    folder = region / "cell_boundaries"
    return (folder, []) if folder.is_dir() and any(folder.glob("*.hdf5")) else (None, [])
