"""The paper's experiments on simulated truth: tables (markdown, CSV) and charts.

    python benchmarks/paper/run.py --out results/paper                        # all
    python benchmarks/paper/run.py --figures 3c,5bc --size-um 300 --out results/paper

| figure | what |
| --- | --- |
| 3c, 5bc | methods on tissues with good and poor stains: IoU of pixels and transcripts; spurious and inconsistent cells; UMAP |
| 4b, 4c | contours removed from 30 % of the cells; fewer transcripts |
| 6 | fine-tuning on a shifted tissue |
| profiles | not in the paper: methods that read RNA, and the same sample with touching cells that share no gene |
| s4, s6 | RNA inputs, backbones: trained alike on a small budget (--budget-epochs, --budget-crop-wpx) |

Simulated tissue is not real tissue, and the base model was trained on another simulator: figures compare methods with each other. A foreign program takes part
when it is installed (`make comparators`), else it stands in the table as not run. The same seed gives the same tables, but for programs that take no seed.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import finetuning  # noqa: E402
import road  # noqa: E402
import tissues  # noqa: E402
import torch  # noqa: E402

from istseg.comparators import METHODS, ROAD  # noqa: E402
from istseg.network.model import BACKBONES, RNA_INPUTS  # noqa: E402

MODULES = {
    "3c": "tissues",
    "5bc": "tissues",
    "4b": "degraded",
    "4c": "degraded",
    "6": "shifted",
    "profiles": "profiles",
    "s4": "ablations",
    "s6": "ablations",
}
"""Figure → module, which has `run(folder, out, options)`."""


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def listed(text: str) -> list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]

    def numbers(text: str) -> list[float]:
        return [float(part) for part in listed(text)]

    # The watershed is the teacher here.
    methods = [road.OURS, road.TUNED, *ROAD, *(name for name in METHODS if name != "watershed")]
    parser.add_argument("--figures", type=listed, default=list(MODULES), help="Default: " + ",".join(MODULES))
    parser.add_argument("--methods", type=listed, default=methods, help="Default: " + ",".join(methods))
    parser.add_argument("--tissues", type=listed, default=list(tissues.TISSUES), help="Default: " + ",".join(tissues.TISSUES))
    parser.add_argument("--contours", type=numbers, default=list(finetuning.CONTOURS), help="Levels of 4b.")
    parser.add_argument("--rna-kept", type=numbers, default=list(finetuning.RNA_KEPT), help="Levels of 4c.")
    parser.add_argument("--size-um", type=float, default=200.0, help="Side of the samples.")
    parser.add_argument("--transcripts", type=float, default=0.5, help="Per µm².")
    parser.add_argument("--base", type=Path, default=finetuning.BASE)
    parser.add_argument("--umap-cells", type=int, default=2000, help="Of 5b; 0 for none.")
    parser.add_argument("--epochs", type=int, default=6, help="Of fine-tuning.")
    parser.add_argument("--crop-wpx", type=int, default=256, help="Of fine-tuning.")
    rna_inputs = ["none", *RNA_INPUTS]
    parser.add_argument("--rna-inputs", type=listed, default=rna_inputs, help="That s4 trains; empty: the base alone, with and without RNA.")
    parser.add_argument("--s4-transcripts", type=float, default=2.0, help="Per µm², of s4.")
    parser.add_argument("--backbones", type=listed, default=list(BACKBONES), help="Of s6.")
    parser.add_argument("--budget-epochs", type=int, default=4, help="Of s4 and s6.")
    parser.add_argument("--budget-crop-wpx", type=int, default=128, help="Of s4 and s6.")
    parser.add_argument("--weights", action="append", default=[], metavar="ROLE=FILE", help="Of comparators: nuclei, cyto (cellpose), genesegnet.")
    parser.add_argument("--baysor", help="Executable of Baysor.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="Samples of 3c, 5bc, 4b and 4c, of this seed and those after it: mean, and half of the range (±).")
    parser.add_argument("--cellpose-diameter-um", type=float, default=10.0, help="That Cellpose is told; the median of simulated cells.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="Keep the samples here; default: a temporary folder.")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(arguments)
    for name, known in (("figures", MODULES), ("tissues", tissues.TISSUES), ("backbones", BACKBONES), ("rna_inputs", rna_inputs)):
        if unknown := [value for value in getattr(options, name) if value not in known]:
            parser.error(f"--{name.replace('_', '-')} {','.join(unknown)}: choose of {', '.join(known)}")
    shipped = sorted(finetuning.BASE.parent.glob("genesegnet*.safetensors"))
    given = (text.partition("=") for text in options.weights)
    options.weights = ({"genesegnet": shipped[-1]} if shipped else {}) | {role: Path(path) for role, _, path in given}
    options.autofluorescence = finetuning.SHIFT
    return options


def main(arguments: list[str]) -> None:
    options = options_of(arguments)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, format="%(asctime)s %(levelname)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        for module in dict.fromkeys(MODULES[name] for name in options.figures):
            for text in importlib.import_module(module).run(folder / module, options.out, options):
                print(text + "\n", flush=True)
    for name, reason in road.not_run(options).items():
        print(f"not run: {name}: {reason}")
    print(
        f"Simulated MERSCOPE, {options.size_um:g} x {options.size_um:g} µm, {options.transcripts:g} transcripts/µm² (s4: {options.s4_transcripts:g}), "
        f"seed {options.seed}, {options.seeds} of it in 3c, 5bc, 4b, 4c; base {options.base.name}; fine-tuning {options.epochs} epochs, crops of "
        f"{options.crop_wpx}; s4 and s6 {options.budget_epochs} epochs, crops of {options.budget_crop_wpx}."
    )
    print(f"{finetuning.machine()}; {time.monotonic() - begun:.0f} s in all")


if __name__ == "__main__":
    main(sys.argv[1:])
