"""Stage `report`: one self-contained HTML page over all samples, all its numbers as JSON, and the measures of all segmentations as tables for other tools."""

from __future__ import annotations

import logging
from pathlib import Path

from istseg.artifacts.files import whole, write_json
from istseg.errors import InputError
from istseg.report.checks import limits
from istseg.report.collect import collect
from istseg.report.render import html
from istseg.report.summary import summarise
from istseg.report.tables import MULTIQC, TSV, multiqc, write_tsv

log = logging.getLogger("istseg")

LIMITS_FILE = "qc_thresholds.yaml"
"""A file of this name at the top of the results folder changes limits of checks."""


def run(run_json: str | Path, results: str | Path, out: str | Path) -> None:
    """Write `report.html`, `report.json`, `metrics.tsv` and `istseg_mqc.json` into `out`.

    Parameters
    ----------
    run_json
        Facts of the run (`artifacts/run.py`).
    results
        Folder below which the artifacts of all samples lie; a `qc_thresholds.yaml` at its top changes limits.

    Raises
    ------
    InputError
        With every artifact that is broken or contradicts another; a sample that lacks artifacts is no error, it is shown as failed.
    """
    results, out = Path(results), Path(out)
    if not results.is_dir():
        raise InputError(f"{results}: is no folder; it should be the one below which the artifacts of all samples lie.")
    own_limits = results / LIMITS_FILE
    definitions = limits(own_limits if own_limits.exists() else None)
    collection = collect(run_json, results)
    report = summarise(collection, definitions)
    page = html(collection, report)
    write_json(out / "report.json", report)
    write_tsv(out / TSV, report)
    write_json(out / MULTIQC, multiqc(report))
    with whole(out / "report.html") as part:
        part.write_text(page, encoding="utf-8")
    verdict = report["verdict"]
    log.info("report: %d samples, %d pass, %d to look at, %d failed", verdict["n_samples"], verdict["n_pass"], verdict["n_look"], verdict["n_fail"])
