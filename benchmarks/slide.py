"""A slide of 1 cm² and a cohort of them, on paper: tasks, CPU hours, memory and cost of each stage by the fits of `conf/resources.config` (docs/sites.md), and
the dry run of their schedule (`istseg.schedule`): wall time on several machines, and the stage that decides it. Nothing is measured here.

    python benchmarks/slide.py
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from istseg import schedule
from istseg.grid import DEFAULT_OVERLAP_UM, DEFAULT_TILE_UM, DEFAULT_WORKING_UM
from istseg.resample import sample_grid

CONFIG = Path(__file__).resolve().parents[1] / "conf" / "resources.config"
PIXEL_UM = 0.108
BY_TILES = ("TEACH", "CURATE", "SEGMENT")
SEGMENTATIONS = 3
CPUS = {"CONVERT": 4, "COEXPRESSION": 4, "EXPORT": 4, "TILE": 2, "CURATE": 2, "MERGE": 2, "ASSIGN": 2, "ASSESS": 2, "COMPARE": 2}
"""CPUs that a task asks for, where not one (labels of the modules, `conf/base.config`). Time is what one CPU needs: more of them are not counted on."""
MACHINES = [(1, 16), (4, 16), (16, 16)]


def estimates() -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Process → terms of its memory (MiB) and of its seconds on one CPU, without a GPU."""
    found = {}
    for names, block in re.findall(r"withName: '([A-Z_|]+)' \{(.*?)\n    \}", CONFIG.read_text(), re.S):
        memory, seconds = (re.search(rf"ext\.{kind} .*\[(start: [^]]+)\]", block) for kind in ("memory", "seconds"))
        for name in names.split("|"):
            found[name] = tuple(
                {k: float(v) for k, v in re.findall(r"(\w+): ([\d.]+)", terms[1])} if terms else {"start": 1800.0} for terms in (memory, seconds)
            )
    return found


def measures(side_px: int, stains: int, planes: int, mtx: float) -> tuple[dict[str, float], int]:
    """What `istseg.workload` would say of a square slide, and its number of tiles."""
    grid = sample_grid(side_px, side_px, DEFAULT_WORKING_UM / PIXEL_UM, DEFAULT_WORKING_UM, DEFAULT_OVERLAP_UM)
    n = grid.windows_across(DEFAULT_TILE_UM, DEFAULT_WORKING_UM)
    y0, x0, y1, x1 = grid.tile_region(1, 1, n)
    area, mpx = (y1 - y0) * (x1 - x0) / 1e6, side_px**2 / 1e6
    size = {
        "mpx": mpx, "stain_mpx": mpx * stains, "raw_mpx": mpx * stains * planes, "row_kpx": side_px * stains / 1e3, "mtx": mtx,
        "tile_mpx": area * stains, "tile_plane_mpx": area, "tile_mtx": mtx * area * 1e6 / (grid.height * grid.width),
    }  # fmt: skip
    return size, len(grid.tiles(n))


def total(terms: dict[str, float], size: dict[str, float], times: int = 1) -> float:
    """A fit's value; what goes by tiles counts `times`."""
    return terms["start"] + times * sum(value * size[name] for name, value in terms.items() if name != "start")


def tasks_of(size: dict[str, float], n_tiles: int, minutes: float) -> list[schedule.Task]:
    """All tasks of one slide, as the pipeline makes them with its defaults."""
    fits = estimates()
    by_tile = max(total(fits[name][1], size) - fits[name][1]["start"] for name in ("TEACH", "SEGMENT"))
    per_task = max(1, round(minutes * 60 / by_tile))
    batches = [min(per_task, n_tiles - start) for start in range(0, n_tiles, per_task)]
    often = {"ASSIGN": SEGMENTATIONS, "ASSESS": SEGMENTATIONS}
    road = ("CONVERT", "TILE", "TEACH", "CALIBRATE", "CURATE", "SEGMENT", "MERGE", "ASSIGN", "ASSESS", "COEXPRESSION", "COMPARE", "REGIONS", "EXPORT")
    tasks = []
    for name in road:
        memory = int(total(fits[name][0], size) * 2**20)
        for tiles in batches if name in BY_TILES else [1] * often.get(name, 1):
            tasks.append(schedule.Task(name, "s", total(fits[name][1], size, tiles), CPUS.get(name, 1), memory))
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side-px", type=int, default=92_000)
    parser.add_argument("--stains", type=int, default=4)
    parser.add_argument("--planes", type=int, default=1, help="That are read: of `focus` one, of `all` all.")
    parser.add_argument("--transcripts", type=float, nargs="+", default=[100.0, 500.0], help="Millions.")
    parser.add_argument("--minutes", type=float, default=10.0, help="--task_minutes.")
    parser.add_argument("--price", type=float, default=0.05, help="Of a CPU hour.")
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    slides = [tasks_of(*measures(options.side_px, options.stains, options.planes, mtx), options.minutes) for mtx in options.transcripts]
    heads = " | ".join(f"{mtx:g} M transcripts: CPU h | GB | cost" for mtx in options.transcripts)
    print(f"| stage | tasks | {heads} |\n|---|---:|{'---:|' * 3 * len(slides)}")
    for name, n in Counter(task.process for task in slides[0]).items():
        own = [[task for task in slide if task.process == name] for slide in slides]
        hours = [sum(task.seconds for task in tasks) / 3600 for tasks in own]
        cells = (f"{h:.2f} | {tasks[0].memory / 1e9:.1f} | {h * options.price:.3f}" for h, tasks in zip(hours, own, strict=True))
        print(f"| {name.lower()} | {n} | {' | '.join(cells)} |")
    hours = [sum(task.seconds for task in slide) / 3600 for slide in slides]
    print(f"| all | {len(slides[0])} | {' | '.join(f'{h:.1f} | | {h * options.price:.2f}' for h in hours)} |")
    print("\n| machine | " + " | ".join(f"{mtx:g} M transcripts: h | bottleneck" for mtx in options.transcripts) + f" |\n|---|{'---:|---|' * len(slides)}")
    for samples in (1, options.samples):
        for nodes, cpus in MACHINES:
            machine = [schedule.Node(cpus, 4 * cpus * 10**9)] * nodes
            plans = [schedule.simulate(schedule.cohort(slide, samples), machine) for slide in slides]
            cells = (f"{plan.seconds / 3600:.1f} | {plan.bottleneck} ({plan.share:.0%})" for plan in plans)
            what = f"{samples} slide{'s' * (samples > 1)}, {nodes} node{'s' * (nodes > 1)} of {cpus} CPUs and {4 * cpus} GB"
            print(f"| {what} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
