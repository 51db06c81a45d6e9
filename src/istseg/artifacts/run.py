"""`run.json`: what Nextflow knows of the run, for the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from istseg.artifacts.files import read_json, write_json
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
    defaults
        Default of each parameter, where the workflow knows it; shown beside the changed ones.
    failures
        `{"sample", "stage", "message"}` of the tasks that failed for good, where the workflow knows them; with `segmentation` where a task worked for one
        segmentation only.
    resources
        `{"stage", "tasks", "seconds", "longest_seconds", "cpu_hours", "gpu_hours", "memory_gb_hours", "peak_memory_bytes",
        "containers"}` of each stage before the report; from Nextflow's trace.
        Hours are those that were asked for: CPUs, GPUs, GB (10⁹ bytes) × time. `containers`: names of the images.
    container_engine
        None where programs were taken from the machine itself.
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
    defaults: dict[str, Any] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    container_engine: str | None = None

    def write(self, path: str | Path) -> None:
        """Write the record."""
        write_json(path, self.__dict__)

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read and check.

        Raises
        ------
        InputError
            If a field is missing or unknown, a sample lacks its name, or a name repeats.
        """
        raw = read_json(path, "the run.json of the workflow")
        try:
            run = cls(**raw)
            names = [s["sample"] for s in run.samples]
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: is not a run.json of this version ({error}).") from None
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise InputError(f"{path}: names the samples {repeated} more than once; every sample needs its own name.")
        return run
