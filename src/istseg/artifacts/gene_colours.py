"""`gene_colours.csv`: the colour of each gene of a sample, alike for genes that are found together [paper: Co-expression visualization].

Columns `gene`, `n_transcripts`, `red`, `green`, `blue` (0 to 255), `hex`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from istseg.artifacts.files import whole
from istseg.errors import InputError

GREY = 0.5
"""All three parts of the colour of a gene that the table does not have."""


def write(path: Path, genes: Sequence[str], counts: np.ndarray, colours: np.ndarray) -> None:
    """Write colours (genes, 3) in 0…1 and the transcripts of each gene."""
    levels = np.rint(colours * 255).astype(int)
    table = pd.DataFrame({"gene": list(genes), "n_transcripts": counts, **dict(zip(("red", "green", "blue"), levels.T, strict=True))})
    table["hex"] = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in levels.tolist()]
    with whole(path) as part:
        table.to_csv(part, index=False)


def read(path: Path) -> pd.DataFrame:
    """Gene → red, green, blue in 0…1; InputError if the file is missing or is no such table."""
    try:
        # A gene may be called NA.
        table = pd.read_csv(path, dtype={"gene": str}, keep_default_na=False).set_index("gene")[["red", "green", "blue"]] / 255
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it should be the gene_colours.csv of `istseg coexpression`.") from None
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: is not a gene_colours.csv of `istseg coexpression` ({error}).") from None
    if table.index.has_duplicates or not ((table >= 0) & (table <= 1)).all(axis=None):
        raise InputError(f"{path}: names a gene twice or has a colour outside of 0 to 255; run `istseg coexpression` again.")
    return table


def of(table: pd.DataFrame, genes: Sequence[str]) -> np.ndarray:
    """(len(genes), 3) float32 in 0…1; `GREY` where the table lacks a gene."""
    return table.reindex(list(genes)).fillna(GREY).to_numpy(np.float32)
