"""What lies in a CosMx folder: tables, images and labels by field of view (FOV), pixel size, channel names."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from istseg.errors import InputError
from istseg.raw import tables, tiffs
from istseg.raw.folders import walk

LABEL_TYPES = ("uint8", "uint16", "uint32", "int16", "int32", "float32")
LEGACY_FRAME = (3648, 5472)
LEGACY_PIXEL_UM = 0.18
MAX_FOV = 999_999
_MAX_DEPTH = 7
_MAX_FILES = 400_000
_STAGE_COLUMNS = ["Slide", "X_mm", "Y_mm", "Z_mm", "ZOffset_mm", "ROI", "FOV", "Order"]
"""Of `latest.fovs.csv`, which has no header."""
_FOV = r"_F(?P<fov>\d{1,6})"
_IMAGE = re.compile(rf".*{_FOV}\.(tiff?|png|jpe?g)", re.IGNORECASE)
_IMAGE_FOLDERS = ("morphology2d", "cellcomposite")
_LABELS = re.compile(rf"CellLabels{_FOV}\.tiff?", re.IGNORECASE)
_TABLES = {
    "tx": re.compile(r".*_tx_file\.(csv(\.gz)?|parquet)", re.IGNORECASE),
    "positions": re.compile(r".*fov_positions_file\.csv(\.gz)?", re.IGNORECASE),
    "stage": re.compile(r"latest\.fovs\.csv", re.IGNORECASE),
    "polygons": re.compile(r".*[-_]polygons\.csv(\.gz)?", re.IGNORECASE),
    "config": re.compile(r".*ExptConfig\.txt", re.IGNORECASE),
    "channels": re.compile(r"Morphology_ChannelID_Dictionary\.txt", re.IGNORECASE),
}


@dataclass
class Layout:
    """Files of one sample; `images` and `labels` by FOV number. `composite`: the images are RGB pictures, not grey values."""

    root: Path
    tx: Path | None = None
    positions: Path | None = None
    polygons: Path | None = None
    config: Path | None = None
    channels: Path | None = None
    images: dict[int, Path] = field(default_factory=dict)
    labels: dict[int, Path] = field(default_factory=dict)
    composite: bool = False


def is_transcript_table(name: str) -> bool:
    """By its name."""
    return _TABLES["tx"].fullmatch(name) is not None


def is_positions_table(name: str) -> bool:
    """By its name."""
    return _TABLES["positions"].fullmatch(name) is not None


def holds_images(folder: Path, names: set[str]) -> bool:
    """Whether a folder with these entries is one of images by field of view."""
    return folder.name.lower() in _IMAGE_FOLDERS and any(_IMAGE.fullmatch(name) for name in names)


def find_layout(root: Path, problems: list[str], warnings: list[str]) -> Layout:
    """Look for the files of a sample; `problems` says which are missing or double."""
    layout = Layout(root)
    found: dict[str, list[Path]] = {name: [] for name in _TABLES}
    morphology: dict[int, list[Path]] = {}
    composite: dict[int, list[Path]] = {}
    by_folder = dict(zip(_IMAGE_FOLDERS, (morphology, composite), strict=True))
    labels: dict[int, list[Path]] = {}
    files = _files(root)
    for path in files:
        for name, pattern in _TABLES.items():
            if pattern.fullmatch(path.name):
                found[name].append(path)
        if match := _LABELS.fullmatch(path.name):
            labels.setdefault(int(match["fov"]), []).append(path)
        elif match := _IMAGE.fullmatch(path.name):
            target = by_folder.get(path.parent.name.lower())
            if target is not None:
                target.setdefault(int(match["fov"]), []).append(path)
    if not found["tx"] and any("protein" in part.lower() for path in files for part in path.relative_to(root).parts):
        raise InputError(
            f"{root}: is a protein run (its files are named so, and there is no *_tx_file.csv); only RNA runs can be segmented. Give the RNA run's folder."
        )
    for name in ("tx", "positions", "polygons"):
        setattr(layout, name, _only(found[name], name, root, problems))
    if layout.tx is None and not found["tx"]:
        problems.append(f"{root}: has no transcript table (*_tx_file.csv). Export the flat files of the slide.")
    if layout.positions is None and not found["positions"] and found["stage"]:
        layout.positions = _only(found["stage"], "stage position", root, problems)
        warnings.append("There is no *_fov_positions_file.csv; positions of the fields of view are those of latest.fovs.csv.")
    elif layout.positions is None and not found["positions"]:
        problems.append(f"{root}: has no positions of the fields of view (*_fov_positions_file.csv). Export the flat files of the slide.")
    layout.config = found["config"][0] if found["config"] else None
    layout.channels = found["channels"][0] if found["channels"] else None
    if morphology and composite:
        warnings.append("There are Morphology2D and CellComposite images; Morphology2D is used.")
    layout.composite = not morphology
    layout.images = _one_each(morphology or composite, "image", problems)
    if not layout.images:
        problems.append(f"{root}: has no images: neither Morphology2D/*_F#####.TIF nor CellComposite/*_F###.jpg or .png.")
    layout.labels = {fov: max(paths, key=_segmentation_number) for fov, paths in sorted(labels.items())}
    if any(len(paths) > 1 for paths in labels.values()):
        folders = sorted({str(p.parent.parent.relative_to(root)) for p in layout.labels.values()})
        warnings.append(f"There are labels of several segmentations; the latest are used ({', '.join(folders[:3])}).")
    return layout


def root_with_images(folder: Path, top: Path) -> Path:
    """The nearest folder with images of those that a table lies in; the table's own where none has any."""
    for root in (folder, *folder.parents):
        if root != top and not root.is_relative_to(top):
            break
        try:
            if find_layout(root, [], []).images:
                return root
        except InputError:
            # Opening the sample tells why.
            break
    return folder


def _files(root: Path) -> list[Path]:
    """Files below `root`, sorted; a folder is entered once, so links cannot loop."""
    if not root.exists():
        raise InputError(f"{root}: no such folder. Is the path in the samplesheet right?")
    if not root.is_dir():
        raise InputError(f"{root}: is a file; give the folder of the slide.")

    def refused(folder: Path, error: OSError) -> None:
        raise InputError(f"{folder}: cannot be read ({error.strerror}). Check the link and the permissions.") from None

    files: list[Path] = []
    for folder, _, names in walk(root, _MAX_DEPTH, refused):
        files += [folder / name for name in names]
        if len(files) > _MAX_FILES:
            raise InputError(f"{root}: holds more than {_MAX_FILES:,} files; give the folder of one slide.")
    return sorted(files)


def _only(paths: list[Path], what: str, root: Path, problems: list[str]) -> Path | None:
    if len(paths) > 1:
        listing = ", ".join(str(p.relative_to(root)) for p in paths)
        problems.append(f"{root}: has several {what} tables ({listing}). One row of the samplesheet is one slide: give its folder as path.")
        return None
    return paths[0] if paths else None


def _one_each(by_fov: dict[int, list[Path]], what: str, problems: list[str]) -> dict[int, Path]:
    for fov, paths in sorted(by_fov.items()):
        if len(paths) > 1:
            problems.append(f"{paths[1]}: is a second {what} of field of view {fov} beside {paths[0].name}; keep one.")
    return {fov: paths[0] for fov, paths in sorted(by_fov.items())}


def _segmentation_number(path: Path) -> tuple[int, str]:
    """Order of `Segmentation_<uuid>_00N` folders; labels outside of one come first."""
    for part in reversed(path.parts):
        if match := re.fullmatch(r"Segmentation_.*_(\d+)", part, re.IGNORECASE):
            return int(match[1]), str(path)
    return -1, str(path)


def read_positions(path: Path, problems: list[str]) -> tuple[dict[int, tuple[float, float]], str, float | None]:
    """Positions of the FOVs.

    Returns
    -------
    FOV → (x, y); their unit, `px` or `mm`; pixel size in µm when the table holds both (else None).
    """
    try:
        with gzip.open(path, "rb") if tables.is_gzip(path) else open(path, "rb") as opened:
            names = _STAGE_COLUMNS if _TABLES["stage"].fullmatch(path.name) else None
            rows = list(csv.DictReader(io.StringIO(opened.read().decode("utf-8-sig")), fieldnames=names))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"{path}: cannot be read ({error}). Copy it again.")
        return {}, "px", None
    names = [n for n in (rows[0] if rows else {}) if n]
    fov = tables.find_column(names, "fov")
    px = [tables.find_column(names, f"{a}_global_px") for a in "xy"]
    mm = [tables.find_column(names, f"{a}_global_mm", f"{a}_mm") for a in "xy"]
    if fov is None or (None in px and None in mm):
        problems.append(f"{path}: lacks the columns fov, x_global_px and y_global_px (or X_mm and Y_mm); it has {', '.join(names[:12]) or 'no rows'}.")
        return {}, "px", None
    unit, columns = ("px", px) if None not in px else ("mm", mm)
    positions: dict[int, tuple[float, float]] = {}
    pairs = []
    for number, row in enumerate(rows, 2):
        try:
            key = int(float(row[fov]))
            value = float(row[columns[0]]), float(row[columns[1]])
        except (TypeError, ValueError, OverflowError):
            problems.append(f"{path}, line {number}: the position is not a number.")
            continue
        if not 0 <= key <= MAX_FOV:
            problems.append(f"{path}, line {number}: {row[fov][:20]} is not the number of a field of view.")
            continue
        if not np.isfinite(value).all():
            problems.append(f"{path}, line {number}: the position of field of view {key} is not a finite number.")
        elif key in positions and positions[key] != value:
            problems.append(f"{path}, line {number}: field of view {key} has a second, different position.")
        positions[key] = value
        if unit == "px" and None not in mm:
            pairs.append((*value, *(_number(row[m]) for m in mm)))
    return positions, unit, _ratio(np.asarray(pairs, float))


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


def _ratio(pairs: np.ndarray) -> float | None:
    """µm per pixel from rows (x_px, y_px, x_mm, y_mm): from the differences between FOVs, or from one position."""
    if not len(pairs):
        return None
    px, mm = pairs[:, :2], pairs[:, 2:]
    delta_px, delta_mm = px - px[0], mm - mm[0]
    if np.nansum(np.abs(delta_px)) < 100:
        delta_px, delta_mm = px, mm
    good = np.isfinite(delta_mm) & (np.abs(delta_px) > 100)
    if not good.any():
        return None
    ratio = float(np.median(np.abs(delta_mm[good] / delta_px[good])) * 1000)
    return ratio if 0.01 <= ratio <= 5 else None


def config_pixel_um(path: Path | None) -> float | None:
    """`ImPixel_nm` of an `ExptConfig.txt`, in µm."""
    if path is None:
        return None
    try:
        match = re.search(r"ImPixel_nm\W+([\d.]+)", path.read_text(errors="replace"))
    except OSError:
        return None
    size = _number(match[1]) / 1000 if match else 0.0
    return size if 0.01 <= size <= 5 else None


def description_json(page: tiffs.PageInfo) -> dict[str, Any]:
    """JSON of the ImageDescription; empty when there is none."""
    try:
        found = json.loads(page.description)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def search(tree: Any, key: str) -> Any:
    """First value of a key anywhere in nested JSON; None when there is none."""
    if isinstance(tree, dict):
        if key in tree:
            return tree[key]
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            found = search(value, key)
            if found is not None:
                return found
    return None


def channel_names(description: dict[str, Any], dictionary: Path | None, n_pages: int, warnings: list[str]) -> list[str]:
    """Names of the pages of a Morphology2D image: what each channel stains, from its JSON or the channel dictionary."""
    order = search(description, "ChannelOrder")
    letters = list(order) if isinstance(order, str) and len(order) == n_pages else None
    targets: dict[str, str] = {}
    reagents = search(description, "MorphologyReagents")
    for reagent in reagents if isinstance(reagents, list) else []:
        letter, target = search(reagent, "ChannelId"), search(reagent, "BiologicalTarget")
        if letter and target:
            targets[str(letter)] = str(target)
    if not targets and dictionary is not None:
        targets = _read_dictionary(dictionary)
    if letters is None:
        warnings.append("The images do not name their channels (ChannelOrder); they are called channel_1, channel_2, ...")
        return [f"channel_{i + 1}" for i in range(n_pages)]
    names: list[str] = []
    for number, letter in enumerate(letters, 1):
        name = targets.get(letter, letter)
        names.append(next(n for n in (name, f"{name}_{letter}", f"{name}_{letter}_{number}") if n not in names))
    return names


def _read_dictionary(path: Path) -> dict[str, str]:
    try:
        rows = [re.split(r"[\t,]", line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        return {}
    names = rows[0] if rows else []
    letter, target = tables.find_column(names, "ChannelID", "Channel_ID"), tables.find_column(names, "BiologicalTarget", "Biological_Target", "Target")
    if letter is None or target is None:
        return {}
    i, j = names.index(letter), names.index(target)
    return {row[i]: row[j] for row in rows[1:] if len(row) > max(i, j)}
