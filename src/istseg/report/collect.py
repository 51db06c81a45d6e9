"""Find the artifacts of a run below a folder: known by file name and by the sample they name, wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from istseg.artifacts.comparison import Comparison
from istseg.artifacts.files import read_json
from istseg.artifacts.metrics import Metrics
from istseg.artifacts.regions import Regions
from istseg.artifacts.run import Run
from istseg.artifacts.sample import Sample
from istseg.artifacts.thresholds import Thresholds
from istseg.artifacts.tiles import TileIndex
from istseg.errors import InputError

MAIN = "istseg"
"""The segmentation that a sample must have to count as done."""
ORDER = (MAIN, "teacher", "vendor")


@dataclass
class Assessed:
    """Metrics of one segmentation and the folder where its pictures lie."""

    metrics: Metrics
    folder: Path


@dataclass
class Found:
    """All that was found of one sample; None or empty where a stage wrote nothing.

    Attributes
    ----------
    curation
        The records of all tasks of `curate`: `{"sample", "tiles", "by_layer": {layer: {rule: n}}}`.
    merge
        `merge.json` as it is.
    comparison
        Of the stage `compare`; None with one segmentation and no annotations.
    preflight
        The sample's entry in `preflight.json`.
    regions
        Of the viewer, and the folder where their pictures lie.
    """

    name: str
    platform: str = ""
    path: str = ""
    preflight: dict[str, Any] | None = None
    sample: Sample | None = None
    tiles: TileIndex | None = None
    thresholds: Thresholds | None = None
    curation: list[dict[str, Any]] = field(default_factory=list)
    merge: dict[str, Any] | None = None
    assessed: dict[str, Assessed] = field(default_factory=dict)
    regions: tuple[Regions, Path] | None = None
    comparison: Comparison | None = None

    @property
    def segmentations(self) -> list[str]:
        """Names, ours first, then teacher and vendor, then comparators by name."""
        return sorted(self.assessed, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))


@dataclass
class Training:
    """Curves and decision of one fine-tuning."""

    name: str
    samples: list[str]
    curves: dict[str, Any] | None = None
    decision: dict[str, Any] | None = None


@dataclass
class Collection:
    """The whole run.

    Attributes
    ----------
    samples
        In the order of the samplesheet.
    foreign
        Samples named by artifacts in the folder but not by `run.json`: left out of the report and said so.
    """

    run: Run
    samples: list[Found]
    trainings: list[Training]
    foreign: list[str]


def collect(run_json: str | Path, results: str | Path) -> Collection:
    """Read `run.json` and every artifact below `results`.

    Links are followed (Nextflow stages inputs as links). Image stores (`*.zarr`) and hidden folders are not entered. The same artifact found twice with
    the same content counts once.

    Raises
    ------
    InputError
        With every artifact that cannot be read, and every pair that contradict each other.
    """
    run = Run.read(run_json)
    found = {s["sample"]: Found(s["sample"], s.get("platform", ""), s.get("path", "")) for s in run.samples}
    trainings: dict[str, Training] = {}
    foreign: set[str] = set()
    problems: list[str] = []
    for path in _files(Path(results)):
        try:
            foreign |= _take(path, found, trainings)
        except InputError as error:
            problems += error.problems
        except (TypeError, KeyError, AttributeError) as error:
            problems.append(f"{path}: is not a {path.name} of this version ({type(error).__name__}: {error}); run its stage again.")
    if problems:
        raise InputError(problems)
    wanted = [trainings[k] for k in sorted(trainings) if not trainings[k].samples or set(trainings[k].samples) & set(found)]
    return Collection(run, list(found.values()), wanted, sorted(foreign))


def _files(folder: Path) -> Iterator[Path]:
    """Artifact files below a folder in a stable order, links followed, no folder or file twice."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.endswith(".zarr") and not f.startswith("."))
        for name in sorted(files):
            if not _known(name):
                continue
            real = os.path.realpath(os.path.join(root, name))
            if real not in seen:
                seen.add(real)
                yield Path(root, name)


def _known(name: str) -> bool:
    return (
        name in _SINGLE
        or name in ("metrics.json", "regions.json", "curves.json", "decision.json", "preflight.json")
        or (name.startswith("curation") and name.endswith(".json"))
    )


def _read_merge(path: Path) -> dict[str, Any]:
    return _record(path, "the merge.json of the stage merge")


_SINGLE = {
    "sample.json": ("sample", Sample.read),
    "tiles.json": ("tiles", TileIndex.read),
    "thresholds.json": ("thresholds", Thresholds.read),
    "merge.json": ("merge", _read_merge),
    "comparison.json": ("comparison", Comparison.read),
}


def _take(path: Path, found: dict[str, Found], trainings: dict[str, Training]) -> set[str]:
    """Put one artifact in its place; give the names of samples that are not of this run."""
    if path.name in _SINGLE:
        attribute, read = _SINGLE[path.name]
        value = read(path)
        name = value["sample"] if isinstance(value, dict) else value.sample
        if name not in found:
            return {name}
        _set(found[name], attribute, value, path)
        return set()
    if path.name == "metrics.json":
        metrics = Metrics.read(path)
        if metrics.sample not in found:
            return {metrics.sample}
        known = found[metrics.sample].assessed.get(metrics.segmentation)
        if known is not None and known.metrics != metrics:
            raise InputError(_twice(path, f"the segmentation {metrics.segmentation} of the sample {metrics.sample}", known.folder))
        found[metrics.sample].assessed.setdefault(metrics.segmentation, Assessed(metrics, path.parent))
        return set()
    if path.name == "regions.json":
        regions = Regions.read(path)
        if regions.sample not in found:
            return {regions.sample}
        known = found[regions.sample].regions
        if known is not None and known[0] != regions:
            raise InputError(_twice(path, f"the sample {regions.sample}", known[1]))
        found[regions.sample].regions = known or (regions, path.parent)
        return set()
    if path.name == "preflight.json":
        return _take_preflight(path, found)
    if path.name in ("curves.json", "decision.json"):
        return _take_training(path, trainings)
    record = _record(path, "the curation.json of the stage curate")
    if not isinstance(record.get("by_layer"), dict):
        raise InputError(f"{path}: has no `by_layer`, so it is not a curation.json of this version; run curate again.")
    if record["sample"] not in found:
        return {record["sample"]}
    if record not in found[record["sample"]].curation:
        found[record["sample"]].curation.append(record)
    return set()


def _take_preflight(path: Path, found: dict[str, Found]) -> set[str]:
    raw = read_json(path, "the preflight.json of the stage preflight")
    entries = raw.get("samples")
    if not isinstance(entries, list):
        raise InputError(f"{path}: holds no list of samples; it should be the preflight.json of the stage preflight.")
    for entry in entries:
        if entry["sample"] in found:
            _set(found[entry["sample"]], "preflight", entry, path)
    return {e["sample"] for e in entries} - set(found)


def _take_training(path: Path, trainings: dict[str, Training]) -> set[str]:
    raw = read_json(path, f"the {path.name} of the stage train")
    if "name" not in raw:
        raise InputError(f"{path}: does not name its model, so it is not a {path.name} of this version; run train again.")
    samples = sorted(raw.get("samples") or [])
    key = "\0".join([raw["name"], *samples])
    training = trainings.setdefault(key, Training(raw["name"], samples))
    _set(training, path.stem, raw, path)
    return set()


def _set(target: Any, attribute: str, value: Any, path: Path) -> None:
    known = getattr(target, attribute)
    if known is not None and known != value:
        raise InputError(_twice(path, f"{target.name}"))
    setattr(target, attribute, value)


def _twice(path: Path, what: str, other: Path | None = None) -> str:
    where = f" ({other})" if other else ""
    return (
        f"{path}: contradicts another {path.name} of {what} below the results folder{where}. "
        "Remove the one of the older run, or publish each run to its own folder."
    )


def _record(path: Path, what: str) -> dict[str, Any]:
    raw = read_json(path, what)
    if not isinstance(raw.get("sample"), str):
        raise InputError(f"{path}: does not name its sample; it should be {what}.")
    return raw
