"""Fig. 6: fine-tuning on a shifted tissue with an imperfect teacher's labels; the experiment is benchmarks/finetuning.py's."""

from __future__ import annotations

import argparse
from pathlib import Path

import finetuning
import tables


def run(folder: Path, out: Path, options: argparse.Namespace) -> list[str]:
    """Write the table and a picture; gives the markdown."""
    pair = finetuning.make_pair(folder, options, finetuning.SHIFT)
    test = pair[1]
    before = finetuning.score(test, finetuning.predicted(test, options.base, test.folder / "zero", options))
    outcome = finetuning.tune("sound", finetuning.sound, pair, options)
    rows = [
        {"model": "teacher that it learnt from", **outcome.teacher},
        {"model": "zero-shot", **before},
        {"model": "fine-tuned", **outcome.tuned, "decision": outcome.verdict},
    ]
    return ["## Fig. 6\n\n" + tables.write(out, "fig6", rows)]
