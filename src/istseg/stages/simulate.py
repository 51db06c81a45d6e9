"""`istseg simulate`: a raw folder of simulated tissue, with its truth beside it."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np

from istseg.artifacts.files import whole, write_json
from istseg.errors import InputError

GENERATIONS = {"merscope": ("parquet", "hdf5"), "cosmx": ("A", "B", "C")}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._|+-]*")


def run(
    *,
    out: Path,
    platform: str,
    width_um: float,
    height_um: float,
    planes: int,
    stains: str,
    degraded_fraction: float,
    degraded_contour: float,
    transcripts_per_um2: float,
    empty_fraction: float,
    generation: str,
    seed: int,
    autofluorescence: float = 0.0,
) -> None:
    """Write `<out>/raw` (the instrument's folder) and `<out>/truth`; `truth/annotations.geojson` is for the samplesheet's column `annotations`.

    Parameters
    ----------
    width_um, height_um
        Size of the imaged area; CosMx rounds it to whole fields of view.
    planes
        Of the images; CosMx has one image and transcripts on nine levels.
    stains
        Membrane and cytoplasm stains, separated by `;`; `none` for none. On CosMx, names of MERSCOPE stains are replaced by that instrument's.
    autofluorescence
        Mean light of granules in the tissue that shine in every stain, relative to a strong stain: a domain shift for models that never saw it.
    generation
        Of the vendor's files; empty: the platform's default.

    Raises
    ------
    InputError
        If parameters do not fit or a folder is there already, all at once.
    """
    from istseg.simulate.recipe import Recipe

    problems: list[str] = []
    generation = generation or GENERATIONS[platform][0]
    if generation not in GENERATIONS[platform]:
        problems.append(f"--generation {generation}: {platform} has {', '.join(GENERATIONS[platform])}.")
    names = _stains(stains, problems)
    if platform == "cosmx" and generation == "A" and len(names) > 2:
        problems.append(
            f"--stains {stains}: generation A writes RGB pictures, which hold two stains beside DAPI; give at most two or choose generation B or C."
        )
    if max(width_um, height_um) > 100_000:
        problems.append(f"--width-um {width_um:g}, --height-um {height_um:g}: at most 100000 µm.")
    problems += [f"{folder}: is there already; give another --out, or move it away." for folder in (out / "raw", out / "truth") if folder.exists()]
    if problems:
        raise InputError(problems)
    recipe = Recipe(
        width_um, height_um, planes, names, degraded_fraction, degraded_contour, transcripts_per_um2, empty_fraction, seed, planes, autofluorescence
    )
    from istseg.simulate import cosmx, merscope
    from istseg.simulate.truth import annotate

    writer = {"merscope": merscope.write, "cosmx": cosmx.write}[platform]
    out.mkdir(parents=True, exist_ok=True)
    with whole(out / "raw") as raw, whole(out / "truth") as truth:
        raw.mkdir()
        truth.mkdir()
        facts = writer(recipe, raw, truth, generation)
        annotate(truth / "cells.parquet", truth / "annotations.geojson", np.array(facts["micron_to_pixel"]), tuple(facts["shape_px"]))
        write_json(truth / "truth.json", {**facts, "platform": platform, "generation": generation, "parameters": asdict(recipe)})


def _stains(text: str, problems: list[str]) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(";") if name.strip()]
    if [name.lower() for name in names] == ["none"]:
        return ()
    if not names:
        problems.append("--stains: is empty; write `none` for no stain beside DAPI.")
    for name in names:
        if not _NAME.fullmatch(name):
            problems.append(f"--stains: {name!r} cannot be part of a file name; use letters, digits and . _ | + -.")
    if len({n.lower() for n in names} | {"dapi"}) < len(names) + 1:
        problems.append(f"--stains {text}: a stain is named twice (DAPI is always there).")
    return tuple(names)
