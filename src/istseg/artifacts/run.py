"""`run.json`: what Nextflow knows of the run, for the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from istseg.artifacts.files import read_json
from istseg.errors import InputError


@dataclass
class Run:
    """Facts of one run, written by the workflow.

    Attributes
    ----------
    samples
        `{"sample", "platform", "path"}` of every sample of the samplesheet, failed ones too.
    params
        Every parameter with its value in this run; `changed` names those that differ from their default.
    versions
        Tool → version.
    """

    name: str
    command: str
    started: str
    nextflow: str
    profile: str
    pipeline_version: str
    samples: list[dict[str, str]]
    params: dict[str, Any] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Run:
        raw = read_json(path, "the run.json of the workflow")
        try:
            return cls(**raw)
        except TypeError as error:
            raise InputError(f"{path}: is not a run.json of this version ({error}).") from None
