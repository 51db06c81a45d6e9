"""A part of a raw folder, in the vendor's own form: small enough to try parameters on.

MERSCOPE: a rectangle; every image is cut, the transform moved, the tables filtered; micron coordinates stay what they were.
Xenium: a rectangle; its form has no offset, so coordinates start at the corner of the part. CosMx: whole fields of view.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tifffile

from istseg import region as regions
from istseg.artifacts.files import whole
from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError
from istseg.helpers import cut_rows, subset_xenium
from istseg.raw import open_raw, tables, tiffs
from istseg.raw.base import options_of
from istseg.raw.cosmx import CosmxSample
from istseg.raw.merscope import MerscopeSample
from istseg.raw.merscope_files import IMAGE, TRANSFORM
from istseg.raw.xenium import XeniumSample

_NEEDED = {MerscopeSample.platform: "region", CosmxSample.platform: "fovs", XeniumSample.platform: "region"}


def run(*, raw: Path, platform: str, out: Path, region: str | None = None, fovs: str | None = None) -> None:
    """Cut a part.

    Parameters
    ----------
    raw, platform
        The folder, as for convert.
    out
        Gets the part; must not exist.
    region
        MERSCOPE, Xenium: `x0,y0,x1,y1` in µm of the platform's frame.
    fovs
        CosMx: fields of view, e.g. `1-4;7`.

    Raises
    ------
    InputError
        If the folder or a table cannot be read, the part is empty or outside, or the platform cannot be cut.
    """
    if platform not in _NEEDED:
        raise InputError(f"--platform {platform}: its folders cannot be cut; those of {', '.join(_NEEDED)} can.")
    given = {"region": region, "fovs": fovs}
    wrong = [f"--{name}: {platform} needs it." for name in [_NEEDED[platform]] if not given[name]]
    wrong += [f"--{name}: {platform} does not take it; give --{_NEEDED[platform]}." for name, value in given.items() if value and name != _NEEDED[platform]]
    if out.exists():
        wrong.append(f"{out}: is there already; give another folder.")
    if wrong:
        raise InputError(wrong)
    reader = open_raw(platform, raw, options_of(fovs=fovs))
    reader.inspect()
    with whole(out) as part:
        part.mkdir()
        if isinstance(reader, MerscopeSample):
            _merscope(reader, region, part)
        elif isinstance(reader, CosmxSample):
            _cosmx(reader, raw, part)
        elif isinstance(reader, XeniumSample):
            subset_xenium.cut(reader, *_corners(reader, region), part)


def _corners(reader: MerscopeSample | XeniumSample, region: str) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the first pixel of the part and of the first one after it."""
    facts = reader.facts
    um = np.array(regions.parse(region)).reshape(2, 2)
    low, high = np.floor(apply_affine(facts.micron_to_pixel, um)).astype(int)
    low, high = np.maximum(low, 0), np.minimum(high, [facts.width_px, facts.height_px])
    if (high - low < 16).any():
        frame = apply_affine(np.linalg.inv(facts.micron_to_pixel), np.array([[0, 0], [facts.width_px, facts.height_px]]))
        raise InputError(f"--region {region}: holds less than 16 pixels of the mosaic, which covers {','.join(f'{v:.1f}' for v in frame.ravel())}.")
    return low, high


def _merscope(reader: MerscopeSample, region: str, out: Path) -> None:
    facts = reader.facts
    low, high = _corners(reader, region)
    (out / "images").mkdir()
    for path in sorted((reader.region / "images").iterdir()):
        if IMAGE.fullmatch(path.name):
            _cut(path, out / "images" / path.name, low, high)
    matrix = facts.micron_to_pixel.copy()
    matrix[:2, 2] -= low
    np.savetxt(out / "images" / TRANSFORM, matrix)
    corner_um, far_um = apply_affine(np.linalg.inv(matrix), np.array([[0, 0], high - low]))
    size = {"mosaic_width_pixels": int(high[0] - low[0]), "mosaic_height_pixels": int(high[1] - low[1])}
    manifest = {"microns_per_pixel": facts.pixel_size_um, **size, "bbox_microns": [*corner_um.tolist(), *far_um.tolist()]}
    (out / "images" / "manifest.json").write_text(json.dumps(manifest, indent=2))

    source = facts.tables[0]
    cut_rows.copy(source, out / source.name, lambda table: cut_rows.within(table, ("global_x", "global_y"), corner_um, far_um))
    cells = _merscope_cells(reader, out, corner_um, far_um)
    for name in ("cell_metadata.csv", "cell_by_gene.csv"):
        if cells is not None and (reader.region / name).exists():
            cut_rows.copy(reader.region / name, out / name, lambda table: _of_cells(table, cells))


def _of_cells(table: pa.Table, cells: set[str]) -> pa.Table:
    key = "EntityID" if "EntityID" in table.column_names else table.column_names[0]
    return table.filter(pc.is_in(table[key], pa.array(sorted(cells), pa.string())))


def _cut(source: Path, target: Path, low: np.ndarray, high: np.ndarray) -> None:
    problems: list[str] = []
    pages = tiffs.inspect(source, problems)
    if problems:
        raise InputError(problems)
    with tiffs.PageReader(pages[0]) as opened:
        tifffile.imwrite(target, opened.block(int(low[1]), int(high[1]), int(low[0]), int(high[0])), metadata=None, software=False)


def _merscope_cells(reader: MerscopeSample, out: Path, low: np.ndarray, high: np.ndarray) -> set[str] | None:
    """Write the cells whose middle lies in the part, all their planes; their ids. None without vendor cells."""
    source = reader.facts.cells_from and reader.region / reader.facts.cells_from
    if not source:
        return None
    kept = set(cut_rows.cells_within(reader, low, high))
    if source.is_dir():
        import h5py

        (out / source.name).mkdir()
        for path in sorted(source.glob("*.hdf5")):
            with h5py.File(path, "r") as stored, h5py.File(out / source.name / path.name, "w") as written:
                group = written.create_group("featuredata")
                for name in stored.get("featuredata", ()):
                    if name in kept:
                        stored.copy(f"featuredata/{name}", group)
        return kept
    table = pq.read_table(source)
    key = tables.find_column(table.column_names, "EntityID", "ID", "cell_id")
    target = out / source.relative_to(reader.region)
    target.parent.mkdir(exist_ok=True)
    pq.write_table(table.filter(pc.is_in(table[key].cast(pa.string()), pa.array(sorted(kept), pa.string()))), target)
    return kept


def _cosmx(reader: CosmxSample, raw: Path, out: Path) -> None:
    """Images and labels of the wanted fields of view are copied, tables filtered by their column of fields of view."""
    layout, wanted = reader.layout, set(reader.options.fovs)
    chosen = [p for f, p in (*layout.images.items(), *layout.labels.items()) if f in wanted]
    for path in [*chosen, *(p for p in (layout.config, layout.channels) if p)]:
        target = out / path.relative_to(raw)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    def among(table: pa.Table) -> pa.Table:
        name = tables.find_column(table.column_names, "fov")
        return table.filter(pa.array(np.isin(cut_rows.numbers(table, name).to_numpy(), list(wanted))))

    beside = [p for p in sorted(layout.tx.parent.iterdir()) if p.name.endswith(("_exprMat_file.csv", "_metadata_file.csv", ".csv.gz"))]
    for path in dict.fromkeys(p for p in (layout.tx, layout.positions, layout.polygons, *beside) if p):
        if not os.path.exists(path) or (path not in (layout.tx, layout.positions, layout.polygons) and tables.find_column(tables.header(path), "fov") is None):
            continue
        target = out / path.relative_to(raw)
        target.parent.mkdir(parents=True, exist_ok=True)
        cut_rows.copy(path, target, among)
