"""Flags of cells, with reasons [paper: Validation and metrics, Spurious and inconsistent cells]."""

from __future__ import annotations

import numpy as np
import pandas as pd

from istseg.artifacts.metrics import FLAGS

FLAG_OF_REASON = {
    "ok": "consistent",
    "no nucleus": "no_nucleus",
    "no nucleus and < T_spurious transcripts": "spurious",
    "contains 2+ nuclei": "inconsistent",
    "cuts a nucleus": "inconsistent",
    "contains a nucleus and cuts another": "inconsistent",
}
REASONS = tuple(FLAG_OF_REASON)


def flag(contained: np.ndarray, intersected: np.ndarray, n_transcripts: np.ndarray, spurious_count: float) -> pd.DataFrame:
    """Flag cells.

    A cell is *spurious* if it intersects no nucleus and has fewer transcripts than `spurious_count`; *inconsistent* if it contains more than
    one nucleus or intersects one that it does not contain; *consistent* if it contains exactly one and touches no other.

    Parameters
    ----------
    contained, intersected
        int (cells,): nuclei contained, nuclei intersected (contained ones included).
    n_transcripts
        int (cells,): transcripts of genes.
    spurious_count
        T_spurious.

    Returns
    -------
    DataFrame with `n_nuclei_contained`, `n_nuclei_intersected`, `is_spurious`, `is_inconsistent`, `qc_reason` (categorical, `REASONS`) and
    `qc_flag` (categorical, `FLAGS`).

    """
    # A cell can contain a nucleus that it does not intersect only if intersect > contain, which the command line refuses.
    cuts = intersected - contained
    conditions = [contained > 1, (contained == 1) & (cuts > 0), cuts > 0, contained == 1, n_transcripts < spurious_count]
    names = ["contains 2+ nuclei", "contains a nucleus and cuts another", "cuts a nucleus", "ok", "no nucleus and < T_spurious transcripts"]
    reason = np.select(conditions, [REASONS.index(name) for name in names], REASONS.index("no nucleus"))
    flags = np.array([FLAGS.index(FLAG_OF_REASON[r]) for r in REASONS])[reason]
    return pd.DataFrame(
        {
            "n_nuclei_contained": contained.astype(np.int32),
            "n_nuclei_intersected": intersected.astype(np.int32),
            "is_spurious": flags == FLAGS.index("spurious"),
            "is_inconsistent": flags == FLAGS.index("inconsistent"),
            "qc_reason": pd.Categorical.from_codes(reason, REASONS),
            "qc_flag": pd.Categorical.from_codes(flags, FLAGS),
        }
    )
