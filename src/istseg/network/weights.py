"""Weights on disk: `.safetensors` of istseg (card inside) and `.pt` of the published package."""

from __future__ import annotations

import pickle  # nosec B403
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from istseg.artifacts.files import sha256 as digest_of
from istseg.artifacts.files import whole
from istseg.errors import InputError
from istseg.network.card import ModelCard
from istseg.network.model import Rna2Seg

CARD_KEY = "istseg_card"
SCRATCH = "scratch"
"""In place of a base: untrained weights."""
STAIN_CHANNELS = 3
"""Channels of the encoded stains in a network's input; those of the RNA follow."""
_SHOWN = 6

Model = TypeVar("Model", bound=nn.Module)
Card = TypeVar("Card", bound=ModelCard)


def load(path: str | Path, sha256: str | None = None) -> tuple[Rna2Seg, ModelCard]:
    """Read a model.

    Parameters
    ----------
    path
        `.safetensors` written by `save`, or `.pt` / `.pth` state dict of the package rna2seg (backbone `cnn`), which gets the card `published_card`.
    sha256
        Digest that the file must have.

    Returns
    -------
    The network in evaluation mode (float32, CPU) and its card with the file's sha256.

    Raises
    ------
    InputError
        If the file is missing, has another digest, cannot be read, lacks a card, or its tensors are not those of the network: all keys are named.
    """
    path = Path(path)
    digest = checked_digest(path, sha256)
    if path.suffix == ".safetensors":
        tensors, card = read_safetensors(path)
    elif path.suffix in (".pt", ".pth"):
        tensors, card = read_pt(path, "rna2seg"), published_card(path.stem)
    else:
        raise InputError(
            f"{path}: weights must be a .safetensors file of istseg or a .pt file of the package rna2seg, not {path.suffix or 'a file without suffix'}."
        )
    model = Rna2Seg(card.backbone, card.rna_input, len(card.genes), card.rna_form)
    return fill(model, tensors, path, f"the network with the backbone {card.backbone}"), replace(card, sha256=digest)


def fill(model: Model, tensors: dict[str, Tensor], path: Path, what: str) -> Model:
    """Give a network the tensors of a file; gives it in evaluation mode.

    Parameters
    ----------
    what
        Names the network in messages.

    Raises
    ------
    InputError
        If the tensors are not those of the network, or not finite.
    """
    _check(tensors, model.state_dict(), path, what)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, strict=True)
    return model.eval()


def checked_digest(path: Path, sha256: str | None) -> str:
    """sha256 of a file of weights.

    Raises
    ------
    InputError
        If the file is missing or has another digest than asked for.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; it should hold the weights of the network (.safetensors, or .pt of the published package).")
    digest = digest_of(path)
    if sha256 and digest != sha256.lower():
        raise InputError(
            f"{path}: its sha256 is {digest}, not {sha256} as asked for; the file is damaged or another one: copy it again or correct the checksum."
        )
    return digest


def published_card(name: str) -> ModelCard:
    """Card of weights of the package rna2seg, which carry none: 0.253 µm, its σ = 0.5 RNA image, threshold −0.5."""
    return ModelCard(
        name=name,
        rna_form="published",
        logit_threshold=-0.5,
        min_flow=0.0,
        notes=[
            "weights of the package rna2seg: they carry no card, its defaults are assumed",
            "stains are normalised one by one, where the package does all membranes jointly",
        ],
    )


def new(seed: int, backbone: str = "cnn", rna_input: str = "density", genes: Sequence[str] = ()) -> tuple[Rna2Seg, ModelCard]:
    """Untrained network (evaluation mode) with seeded random weights, and a card to fill in. The global random state is left alone."""
    card = ModelCard(name="scratch", backbone=backbone, rna_input=rna_input, genes=list(genes), training={"init_seed": seed})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Rna2Seg(backbone, rna_input, len(card.genes), card.rna_form)
    return model.eval(), card


def with_rna_input(base: Rna2Seg, card: ModelCard, rna_input: str, genes: Sequence[str], seed: int) -> tuple[Rna2Seg, ModelCard]:
    """A base's network for another RNA input: all tensors are the base's, but for those that read the RNA, which are neutral, so that at first it sees no RNA.

    Parameters
    ----------
    base, card
        Of `load`; left alone.
    rna_input, genes
        See `new`.
    seed
        Of colours that are learnt.

    Returns
    -------
    The network in evaluation mode, and the base's card with the new RNA input and no sha256.
    """
    model, _ = new(seed, card.backbone, rna_input, genes)
    # What reads the input differs between a network of four channels and one of six.
    four, six = (new(seed, card.backbone, kind, ["any"])[0].state_dict() for kind in ("density", "learned"))
    state = model.state_dict()
    for key, value in base.state_dict().items():
        if key not in four:
            continue
        if four[key].shape == six[key].shape:
            state[key].copy_(value)
            continue
        # Statistics and scales of the input are one-dimensional; weights have the input channels second.
        place = (slice(None),) * (value.ndim > 1)
        state[key][(*place, slice(STAIN_CHANNELS))] = value[(*place, slice(STAIN_CHANNELS))]
        state[key][(*place, slice(STAIN_CHANNELS, None))] = 1.0 if key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")) else 0.0
    model.load_state_dict(state)
    return model.eval(), replace(card, rna_input=rna_input, genes=list(genes), rna_form="working", sha256="")


def save(path: str | Path, model: torch.nn.Module, card: ModelCard, half: bool = True) -> str:
    """Write a model with its card as `.safetensors`; the same model and card give the same bytes.

    Parameters
    ----------
    path
        Of the file, `.safetensors`.
    model
        A `Rna2Seg`, or another network with a card of its own.
    card
        Stored inside, but for its sha256.
    half
        Store as float16 (a tensor whose values do not fit stays float32).

    Returns
    -------
    sha256 of the file.

    Raises
    ------
    ValueError
        If a weight is not finite or the card cannot be read back.
    """
    if problems := card.problems(str(path)):
        raise ValueError("\n".join(problems))
    tensors = {key: _stored(key, value.detach().cpu(), half) for key, value in model.state_dict().items()}
    # One metadata entry only: the library writes several in random order.
    with whole(path) as part:
        part.write_bytes(to_bytes(tensors, metadata={CARD_KEY: card.to_json()}))
    return digest_of(path)


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it comes back from a file of half precision: what is judged should be what is stored."""
    return {k: v.half().float() if v.is_floating_point() else v for k, v in state.items()}


def _stored(key: str, value: Tensor, half: bool) -> Tensor:
    if not value.is_floating_point():
        return value.contiguous()
    if not torch.isfinite(value).all():
        raise ValueError(f"{key} holds values that are not finite: training has diverged")
    small = value.half()
    return (small if half and torch.isfinite(small).all() else value.float()).contiguous()


def read_safetensors(path: Path, card_type: type[Card] = ModelCard) -> tuple[dict[str, Tensor], Card]:
    """Tensors and card of a file that `save` wrote.

    Raises
    ------
    InputError
        If it is no such file, or its card is not of the type.
    """
    try:
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in list(stored.keys())}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: is not a safetensors file ({error}); was it cut off? Copy it again.") from None
    if CARD_KEY not in metadata:
        raise InputError(
            f"{path}: carries no model card (metadata entry {CARD_KEY}), so its resolution and RNA image are unknown; "
            "use a file that istseg wrote, or the package's .pt."
        )
    return tensors, card_type.from_json(metadata[CARD_KEY], str(path))


def read_pt(path: Path, package: str) -> dict[str, Tensor]:
    """State dict of a foreign file; nothing inside it is run.

    Parameters
    ----------
    package
        Names in messages what writes such files.

    Raises
    ------
    InputError
        If it cannot be read, or is not a dict of tensors.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        # torch's advice in this case is to run the code inside the file.
        reason = type(error).__name__ if isinstance(error, pickle.UnpicklingError) or not str(error) else str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a state dict of tensors ({reason}); it may be cut off, or hold code, which is never run.") from None
    if not isinstance(stored, dict) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise InputError(f"{path}: is not a state dict (name → tensor), as the package {package} writes it.")
    return stored


def _check(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path, what: str) -> None:
    problems = []
    if missing := [k for k in wanted if k not in found]:
        problems.append(f"{path}: lacks {len(missing)} of the {len(wanted)} tensors of {what}: {_list(missing)}; partial weights are not used.")
    if unknown := [k for k in found if k not in wanted]:
        problems.append(f"{path}: has {len(unknown)} tensors that {what} does not know: {_list(unknown)}; is it another architecture?")
    shapes = [f"{k} {tuple(found[k].shape)} instead of {tuple(v.shape)}" for k, v in wanted.items() if k in found and found[k].shape != v.shape]
    if shapes:
        problems.append(f"{path}: has {len(shapes)} tensors of a wrong shape: {_list(shapes)}.")
    broken = [k for k, v in found.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        problems.append(f"{path}: has {len(broken)} tensors with values that are not finite: {_list(broken)}.")
    if problems:
        raise InputError(problems)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
