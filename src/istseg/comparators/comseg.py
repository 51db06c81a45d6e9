"""Comparator `comseg`: ComSeg (Defard et al., Communications Biology 2024) gives transcripts to nuclei on a graph of co-expression.

`bin/run_comseg` runs the package in its own environment. It draws no outlines that pixels could be compared by: a cell's outline here is the convex hull of its
nucleus and its transcripts.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.csv as csv

from istseg.comparators import Surroundings
from istseg.comparators.neutral import Collected, Prepared, hulls, places
from istseg.comparators.programs import missing
from istseg.errors import InputError


def problems(surroundings: Surroundings) -> list[str]:
    """Its environment is there."""
    return missing(surroundings.programs, "comseg/bin/python")


def collect(raw: Path, prepared: Prepared) -> Collected:
    """Read what `run_comseg` wrote: `assignment.csv` (`transcript_id`, `prior`) and `comseg.json` (version and parameters).

    A cell has the number of its nucleus.

    Raises
    ------
    InputError
        If a file is missing or is not of this form, or names what was not given.
    """
    try:
        table = csv.read_csv(raw / "assignment.csv")
        ids, numbers = (table[name].to_numpy().astype(np.int64) for name in ("transcript_id", "prior"))
        facts = json.loads((raw / "comseg.json").read_text())
    except FileNotFoundError as error:
        raise InputError(f"{error.filename or raw}: no such file; it should be written by run_comseg. Did it end well?") from None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{raw}: is not the output of run_comseg ({error}).") from None
    if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= len(prepared.prior):
        raise InputError(f"{raw}/assignment.csv: names nuclei that ComSeg was not given; it is of another sample.")
    place = places(prepared).set_index("transcript_id")
    if unknown := np.setdiff1d(ids, place.index)[:1].tolist():
        raise InputError(f"{raw}/assignment.csv: names the transcript {unknown[0]}, which ComSeg was not given; it is of another sample.")
    seeds = dict(enumerate(prepared.prior.geometry, start=1))
    return Collected(hulls(place.loc[ids].to_numpy(float), numbers, seeds), ids, numbers, facts)
