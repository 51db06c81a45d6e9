"""How long would this run take on another machine? A dry run of the schedule, from the trace of a real one.

Tasks take as long as they took; what may run at once follows from the road's dependencies and from CPUs, memory and GPUs of the nodes. List scheduling
(Graham 1969): whenever something ends, tasks that are ready start in the order in which they became ready, on the first node with room.
"""

from __future__ import annotations

import csv
import heapq
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from istseg.errors import InputError

PARENTS = {
    "PREFLIGHT": (),
    "CONVERT": ("PREFLIGHT",),
    "TILE": ("CONVERT",),
    "COEXPRESSION": ("CONVERT",),
    "TEACH": ("TILE",),
    "CALIBRATE": ("TEACH",),
    "CURATE": ("CALIBRATE",),
    "TRAIN": ("CURATE",),
    "SEGMENT": ("TILE", "TRAIN"),
    "MERGE": ("SEGMENT", "TEACH", "CALIBRATE"),
    "COMPARATOR_TILES": ("TEACH", "CALIBRATE"),
    "COMPARATOR_MERGE": ("COMPARATOR_TILES",),
    "COMPARATOR_PREPARE": ("MERGE",),
    "PROSEG": ("COMPARATOR_PREPARE",),
    "COMSEG": ("COMPARATOR_PREPARE",),
    "BAYSOR": ("COMPARATOR_PREPARE",),
    "COMPARATOR_COLLECT": ("PROSEG", "COMSEG", "BAYSOR"),
    "ASSIGN": ("MERGE", "COMPARATOR_MERGE", "COMPARATOR_COLLECT"),
    "ASSESS": ("ASSIGN", "COEXPRESSION"),
    "COMPARE": ("ASSIGN",),
    "REGIONS": ("ASSESS",),
    "EXPORT": ("ASSESS",),
    "REPORT": ("CURATE", "COMPARE", "REGIONS", "EXPORT", "ASSESS", "TRAIN"),
}
"""Process → processes whose tasks of the same sample it waits for (all samples where one of the two belongs to no sample)."""
ON_GPU = frozenset({"TEACH", "TRAIN", "SEGMENT", "COMPARATOR_TILES"})
SHARED = frozenset({"PREFLIGHT", "REPORT"})
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


@dataclass(frozen=True)
class Task:
    """One task of a run. `sample` is empty where it belongs to all; `memory` in bytes."""

    process: str
    sample: str
    seconds: float
    cpus: int = 1
    memory: int = 0
    gpus: int = 0


@dataclass(frozen=True)
class Node:
    """A machine; `memory` in bytes."""

    cpus: int
    memory: int
    gpus: int = 0


@dataclass
class Plan:
    """What the dry run found.

    Attributes
    ----------
    seconds
        From the first start to the last end.
    bottleneck
        Stage that takes most of the chain of tasks that decides the end, each waiting for the one before it or for its place.
    share
        Of the bottleneck in `seconds`.
    waited
        Stage → seconds that tasks which were ready had to wait for a node, in all.
    busy
        Share of the CPUs' time that was used.
    """

    seconds: float
    bottleneck: str
    share: float
    busy: float
    waited: dict[str, float] = field(default_factory=dict)


def read_trace(path: Path, gpus: bool = False) -> list[Task]:
    """Tasks of a `trace.tsv` that ended well, in their order of submission.

    Parameters
    ----------
    gpus
        Whether the stages of the network and the teacher ask for one GPU.

    Raises
    ------
    InputError
        If it is no trace, holds no such task, or a process that the road does not know.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); it should be pipeline_info/trace.tsv of a run.") from None
    missing = {"process", "tag", "status", "realtime", "cpus", "peak_rss"} - set(rows[0] if rows else {})
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(sorted(missing))}; it should be pipeline_info/trace.tsv of a run.")
    tasks = []
    for row in rows:
        if row["status"] not in ("COMPLETED", "CACHED"):
            continue
        process = row["process"].rpartition(":")[2]
        if process not in PARENTS:
            raise InputError(f"{path}: the process {process} is none of this pipeline.")
        sample = "" if process in SHARED or row["tag"].split(" ")[0] == "cohort" else row["tag"].split(" ")[0]
        tasks.append(
            Task(process, sample, _amount(row["realtime"], _UNITS), int(row["cpus"]), int(_amount(row["peak_rss"], _BYTES)), int(gpus and process in ON_GPU))
        )
    if not tasks:
        raise InputError(f"{path}: no task ended well.")
    return tasks


def _amount(text: str, units: dict[str, float]) -> float:
    """`1h 2m 3.5s`, `720 MB`; 0 for `-`."""
    return sum(float(value) * units[unit] for value, unit in re.findall(rf"([0-9.]+)\s*({'|'.join(sorted(units, key=len, reverse=True))})\b", text))


def cohort(tasks: list[Task], samples: int) -> list[Task]:
    """The same run with as many samples, each a copy of one of the trace's."""
    own: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        own[task.sample].append(task)
    shared, names = own.pop("", []), list(own)
    copies = [replace(task, sample=f"{i}") for i in range(samples) for task in own[names[i % len(names)]]] if names else []
    return shared + copies


def simulate(tasks: list[Task], nodes: list[Node]) -> Plan:
    """Run the tasks on the nodes.

    Raises
    ------
    InputError
        If a task fits no node.
    """
    for task in tasks:
        if not any(_fits(task, [n.cpus, n.memory, n.gpus]) for n in nodes):
            raise InputError(f"{task.process}: asks for {task.cpus} CPUs, {task.memory / 1e9:.1f} GB and {task.gpus} GPUs, which no node has.")
    parents = _parents(tasks)
    children: dict[int, list[int]] = defaultdict(list)
    for i, above in enumerate(parents):
        for j in above:
            children[j].append(i)
    open_parents = [len(above) for above in parents]
    free = [[n.cpus, n.memory, n.gpus] for n in nodes]
    ready = [(0.0, i) for i, n in enumerate(open_parents) if not n]
    since = dict.fromkeys((i for _, i in ready), 0.0)
    running: list[tuple[float, int, int]] = []
    before: dict[int, int | None] = dict.fromkeys(since)
    ends, waited, now, last = [0.0] * len(tasks), defaultdict(float), 0.0, None
    while ready or running:
        waiting = []
        for key in sorted(ready):
            task = tasks[key[1]]
            place = next((k for k, have in enumerate(free) if _fits(task, have)), None)
            if place is None:
                waiting.append(key)
                continue
            _take(free[place], task, -1)
            if now > since[key[1]]:
                waited[task.process.lower()] += now - since[key[1]]
                before[key[1]] = last
            heapq.heappush(running, (now + task.seconds, key[1], place))
        ready = waiting
        now, last, place = heapq.heappop(running)
        ends[last] = now
        _take(free[place], tasks[last], 1)
        for child in children[last]:
            open_parents[child] -= 1
            if not open_parents[child]:
                ready.append((now, child))
                since[child], before[child] = now, last
    return _plan(tasks, nodes, ends, before, dict(waited))


def _parents(tasks: list[Task]) -> list[list[int]]:
    """Numbers of the tasks that each waits for; nobody waits for a process that the run did not have."""
    index: dict[tuple[str, str], list[int]] = defaultdict(list)
    every: dict[str, list[int]] = defaultdict(list)
    for i, task in enumerate(tasks):
        index[task.process, task.sample].append(i)
        every[task.process].append(i)

    return [sorted(j for p in PARENTS[t.process] for j in (index[p, t.sample] + index[p, ""] if t.sample else every[p])) for t in tasks]


def _fits(task: Task, have: list[int]) -> bool:
    return task.cpus <= have[0] and task.memory <= have[1] and task.gpus <= have[2]


def _take(have: list[int], task: Task, sign: int) -> None:
    for k, amount in enumerate((task.cpus, task.memory, task.gpus)):
        have[k] += sign * amount


def _plan(tasks: list[Task], nodes: list[Node], ends: list[float], before: dict[int, int | None], waited: dict[str, float]) -> Plan:
    total = max(ends)
    share: dict[str, float] = defaultdict(float)
    at: int | None = ends.index(total)
    while at is not None:
        share[tasks[at].process.lower()] += tasks[at].seconds
        at = before[at]
    worst = max(sorted(share), key=share.__getitem__)
    busy = sum(t.seconds * t.cpus for t in tasks) / (total * sum(n.cpus for n in nodes)) if total else 0.0
    return Plan(total, worst, share[worst] / total if total else 0.0, busy, waited)
