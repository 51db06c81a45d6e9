"""Lists of genes that people give: pairs that exclude each other (`gene_a`, `gene_b`) and markers of cell types (`gene`, `cell_type`), CSV with a header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from istseg.errors import InputError

_SHOWN = 5


def read_pairs(path: str | Path) -> pd.DataFrame:
    """Columns `gene_a`, `gene_b`.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column or a value, or pairs a gene with itself.
    """
    table = _read(path, ["gene_a", "gene_b"])
    own = table["gene_a"] == table["gene_b"]
    if own.any():
        raise InputError(f"{path}: line {int(np.flatnonzero(own)[0]) + 2} pairs {table.loc[own, 'gene_a'].iloc[0]} with itself.")
    return table


def read_markers(path: str | Path) -> pd.DataFrame:
    """Columns `gene`, `cell_type`; a gene marks one type.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column or a value, or names a gene twice.
    """
    table = _read(path, ["gene", "cell_type"])
    twice = table["gene"].duplicated()
    if twice.any():
        raise InputError(f"{path}: names {', '.join(table.loc[twice, 'gene'].unique()[:5])} more than once; a marker is of one cell type.")
    return table


def known_pairs(path: str | Path, genes: list[str], warnings: list[str]) -> np.ndarray:
    """(k, 2) places in `genes`, int64, of the pairs whose genes the sample has both; what is left out is told in `warnings`.

    Raises
    ------
    InputError
        As `read_pairs`, and if no pair is left.
    """
    table = _known(read_pairs(path), ["gene_a", "gene_b"], "pairs", genes, path, warnings)
    panel = pd.Index(genes, dtype=object)
    return np.stack([panel.get_indexer(table[column]) for column in table], axis=1).astype(np.int64)


def known_markers(path: str | Path, genes: list[str], warnings: list[str]) -> pd.DataFrame:
    """Rows of `read_markers` whose gene the sample has; what is left out is told in `warnings`.

    Raises
    ------
    InputError
        As `read_markers`, and if no marker is left.
    """
    return _known(read_markers(path), ["gene"], "markers", genes, path, warnings)


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


def _known(table: pd.DataFrame, columns: list[str], what: str, genes: list[str], path: str | Path, warnings: list[str]) -> pd.DataFrame:
    """Rows whose genes are all in `genes`: one list serves a cohort of several panels."""
    there = table[columns].isin(genes)
    if there.to_numpy().all():
        return table
    usable = there.all(axis=1)
    unknown = pd.unique(table[columns].to_numpy()[~there.to_numpy()])
    named = ", ".join(unknown[:_SHOWN]) + (" ..." if len(unknown) > _SHOWN else "")
    if not usable.any():
        raise InputError(f"{path}: none of its {len(table)} {what} can be used: the sample does not have {named}. Is the list of this species and panel?")
    warnings.append(
        f"{Path(path).name}: {int((~usable).sum())} of {len(table)} {what} are left out, as the sample lacks {len(unknown)} of their genes ({named})."
    )
    return table[usable].reset_index(drop=True)
