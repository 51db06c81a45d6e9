"""Gene maps: which gene a pixel shows [paper: RNA2seg with colors for each RNA species].

A gene map is an integer image (y, x): 0 without a molecule, else 1 + the place of a gene in a list of names. The paper draws one at random where several
molecules share a pixel. Here it is the one whose transcript id has the smallest hash: as good as random, and the same in every tile and order of the file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def draw_order(transcript_id: np.ndarray) -> np.ndarray:
    """uint64 hash of each transcript id: the finaliser of SplitMix64 [Steele, Lea and Flood 2014], which maps 64-bit integers one to one, so ids never tie."""
    z = np.asarray(transcript_id).astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw_shares(transcript_id: np.ndarray, seed: int) -> np.ndarray:
    """(n,) float64 in [0, 1): a draw for each transcript, as good as random, the same in every tile and order of the file; another one for each seed."""
    ids = np.asarray(transcript_id).astype(np.int64).view(np.uint64)
    key = draw_order((draw_order(ids) ^ draw_order(np.array([seed]))).view(np.int64))
    return (key >> np.uint64(11)) * 2.0**-53


def draw_map(flat: np.ndarray, transcript_id: np.ndarray, gene: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Gene map (y, x) int32 of molecules at the flat pixels `flat`; `gene` is what is written of each."""
    image = np.zeros(shape[0] * shape[1], np.int32)
    # Of several values for one pixel numpy keeps the last.
    order = np.argsort(draw_order(transcript_id))[::-1]
    image[flat[order]] = gene[order]
    return image.reshape(shape)


def places(names: Sequence[str], genes: Sequence[str]) -> np.ndarray:
    """(1 + len(names),) int32 that translates a gene map of `names` into one of `genes`: genes that are not in the list become 0."""
    return np.append(0, pd.Index(genes, dtype=object).get_indexer(pd.Index(names, dtype=object)) + 1).astype(np.int32)
