"""Lists of genes that people give: pairs that exclude each other (`gene_a`, `gene_b`) and markers of cell types (`gene`, `cell_type`), CSV with a header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from istseg.errors import InputError


def read_pairs(path: str | Path, genes: list[str] | None = None) -> np.ndarray:
    """(k, 2) places in `genes` of pairs of genes; without `genes` the file is only checked, and the places are −1.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column or a value, or names genes that are not in `genes` or a gene with itself.
    """
    table = _read(path, ["gene_a", "gene_b"])
    own = table["gene_a"] == table["gene_b"]
    if own.any():
        raise InputError(f"{path}: line {int(np.flatnonzero(own)[0]) + 2} pairs {table.loc[own, 'gene_a'].iloc[0]} with itself.")
    return _places(table.melt()["value"], genes, path).reshape(2, -1).T


def read_markers(path: str | Path, genes: list[str] | None = None) -> pd.DataFrame:
    """Columns `gene`, `cell_type`; a gene marks one type.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column or a value, names a gene twice or (with `genes`) one that is not in it.
    """
    table = _read(path, ["gene", "cell_type"])
    twice = table["gene"].duplicated()
    if twice.any():
        raise InputError(f"{path}: names {', '.join(table.loc[twice, 'gene'].unique()[:5])} more than once; a marker is of one cell type.")
    _places(table["gene"], genes, path)
    return table


def _read(path: str | Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", skipinitialspace=True, keep_default_na=False)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); it should have the columns {', '.join(columns)}.") from None
    missing = [c for c in columns if c not in table]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table.columns))}.")
    table = table[columns].apply(lambda column: column.str.strip())
    empty = (table == "").any(axis=1)
    if empty.any():
        raise InputError(f"{path}: line {int(np.flatnonzero(empty)[0]) + 2} has an empty value.")
    if not len(table):
        raise InputError(f"{path}: has a header but no gene.")
    return table


def _places(names: pd.Series, genes: list[str] | None, path: str | Path) -> np.ndarray:
    if genes is None:
        return np.full(len(names), -1, np.int64)
    found = pd.Index(genes, dtype=object).get_indexer(pd.Index(names, dtype=object))
    if (found < 0).any():
        unknown = names[found < 0].unique()
        raise InputError(f"{path}: names genes that the sample does not have: {', '.join(unknown[:8])}{' ...' if len(unknown) > 8 else ''}.")
    return found.astype(np.int64)
