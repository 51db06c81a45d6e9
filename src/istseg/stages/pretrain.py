"""pretrain: painted tissue → base model: `model.safetensors`, `model_card.md`, `heldout.json`, `curves.json`. Needs no data."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from istseg.artifacts.files import whole, write_json
from istseg.errors import InputError
from istseg.grid import DEFAULT_WORKING_UM
from istseg.network import weights
from istseg.network.card import ModelCard
from istseg.network.inference import open_device
from istseg.pretrain import evaluate
from istseg.pretrain.fit import Recipe, fit
from istseg.pretrain.kinds import KINDS, Kind

log = logging.getLogger("istseg")

COLUMNS = ("cells", "ap@0.5", "ap@0.75", "mean_best_iou", "false@0.5")
_SIDES = 32


def run(
    *,
    out: Path,
    name: str,
    base: str,
    base_sha256: str | None,
    recipe: Recipe,
    pictures_per_family: int,
    picture_wpx: int,
    device: str,
    network: str = "istseg",
    backbone: str = "cnn",
) -> None:
    """Train a base model on painted tissue, choose its filter, measure it on held-out tissue.

    Parameters
    ----------
    out
        Folder for the results.
    name
        Name of the model.
    base, base_sha256
        Weights to go on from, or `scratch`, and the digest that the file must have. They are measured too, on the same pictures.
    recipe
        See `pretrain.fit.Recipe`.
    pictures_per_family, picture_wpx
        Held-out pictures of each family of tissue and their side in working pixels; as many others choose the filter.
    device
        `cpu` or `cuda`.
    network
        Key of `pretrain.kinds.KINDS`. A `genesegnet` may also go on from a base of the RNA2seg network, of which it takes the layers that both have.
    backbone
        Key of `network.model.BACKBONES`, of an `istseg` from scratch.

    Raises
    ------
    InputError
        If sizes do not fit the network or the painter, or the base cannot be used or has the new model's name; all at once.
    DeviceError
        If the device is not there.
    """
    kind, problems = KINDS[network], []
    new_istseg = network == "istseg" and base == weights.SCRATCH
    if backbone != "cnn" and not new_istseg:
        problems.append(f"--backbone {backbone}: is chosen for a network `istseg` from scratch; leave --base and --network out.")
    for option, value in (("--crop-wpx", recipe.side), ("--tissue-wpx", recipe.tissue_side), ("--picture-wpx", picture_wpx)):
        if value % _SIDES:
            problems.append(f"{option} {value}: must be a multiple of {_SIDES}, e.g. {max(value // _SIDES, 2) * _SIDES}.")
    if recipe.tissue_side < recipe.side * 1.25:
        problems.append(f"--tissue-wpx {recipe.tissue_side}: must be at least 1.25 times --crop-wpx {recipe.side}: turned crops need room.")
    loaded = None
    try:
        loaded = kind.start(base, base_sha256, recipe.seed, **({"backbone": backbone} if new_istseg else {}))
    except InputError as error:
        problems += error.problems
    if loaded is not None:
        problems += _base_problems(loaded[1], name)
    if problems or loaded is None:
        raise InputError(problems)
    place = open_device(device)
    model, card, facts = loaded
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[dict[str, Any]]] = {}
    if card.sha256:
        measured[card.name] = evaluate.evaluate(model, card, place, pictures_per_family, picture_wpx, kind=kind)
    trained = fit(model, recipe, place, kind)
    tuned = replace(
        card,
        name=name,
        parent=card.name if card.sha256 else card.parent,
        parent_sha256=card.sha256 or card.parent_sha256,
        rna_form="working",
        training={"data": "painted tissue only (istseg pretrain): no real image, no published weights", "device": device} | facts | trained.facts,
        notes=["trained on simulated tissue only and not validated on real tissue: see model_card.md"],
        sha256="",
    )
    tuned = judge(out, trained.model, tuned, place, pictures_per_family, picture_wpx, measured, kind)
    write_json(out / "curves.json", {"name": name, "steps": trained.curve})
    log.info("%s: %s", out / "model.safetensors", tuned.sha256)


def _base_problems(card: ModelCard, name: str) -> list[str]:
    """Why painted tissue cannot teach this base."""
    problems = []
    if card.rna_input != "density":
        problems.append(f"--base: {card.name} has the RNA input {card.rna_input}; painted tissue has no genes: give a base with the RNA input density.")
    if card.name == name:
        problems.append(f"--name {name}: is the name of the base; give another, so that the two can be told apart.")
    try:
        card.check_tile(DEFAULT_WORKING_UM, "painted tissue")
    except InputError as error:
        problems += error.problems
    return problems


def judge(
    out: Path,
    model: nn.Module,
    card: ModelCard,
    place: Any,
    pictures_per_family: int,
    picture_wpx: int,
    measured: dict[str, list[dict[str, Any]]],
    kind: Kind = KINDS["istseg"],
) -> ModelCard:
    """Choose the filter, measure, write weights, tables and card; gives the card with its sha256.

    What is judged is what is stored: weights rounded to half precision. `measured` holds the tables of other models on the same pictures.
    """
    model.load_state_dict(weights.rounded(model.state_dict()))
    card, tried = evaluate.choose_filter(model, card, place, pictures_per_family, picture_wpx, kind)
    table = evaluate.evaluate(model, card, place, pictures_per_family, picture_wpx, kind=kind)
    shown = {record["condition"]: {k: round(record[k], 4) for k in COLUMNS} for record in table}
    card = replace(card, training=card.training | {"held_out": shown})
    card = replace(card, sha256=weights.save(out / "model.safetensors", model.cpu(), card))
    write_json(out / "heldout.json", {"filter": tried, "models": measured | {card.name: table}})
    with whole(out / "model_card.md") as part:
        part.write_text(_card_text(card, measured | {card.name: table}, tried, kind))
    return card


def _card_text(card: ModelCard, tables: dict[str, list[dict[str, Any]]], tried: list[dict[str, Any]], kind: Kind) -> str:
    lines = [f"# {card.name}", "", "A base model trained on painted tissue only: no real image, no published weights, no annotation.", ""]
    lines += ["| | |", "| --- | --- |", f"| sha256 | `{card.sha256}` |", f"| backbone | {card.backbone} |", f"| pixel | {card.working_um:g} µm |"]
    lines += [f"| RNA image | {card.rna_form} |", f"| normalisation | {card.normalisation} |", f"| logit threshold | {card.logit_threshold:g} |"]
    strictness = kind.strictness.replace("_", " ").replace("min flow", "least mean flow")
    lines += [f"| {strictness} | {getattr(card, kind.strictness):g} |", f"| went on from | {card.parent or '-'} {card.parent_sha256} |"]
    lines += [f"| {key} | {value} |" for key, value in card.training.items() if key != "held_out"]
    for name, table in tables.items():
        lines += ["", f"## Held-out painted tissue: {name}", "", "| input | " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
        lines += [f"| {r['condition']} | " + " | ".join(f"{r[c]:.3f}" if isinstance(r[c], float) else str(r[c]) for c in COLUMNS) + " |" for r in table]
    lines += ["", "## How the filter was chosen", "", "On other painted tissue, random stains: the pair with the best AP@0.5.", ""]
    lines += [f"| logit threshold | {strictness} | AP@0.5 | false@0.5 |", "| ---: | ---: | ---: | ---: |"]
    lines += [f"| {r['logit_threshold']:g} | {r[kind.strictness]:g} | {r['ap@0.5']:.3f} | {r['false@0.5']:.3f} |" for r in tried]
    return "\n".join(lines) + "\n"
