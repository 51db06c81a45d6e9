"""The model card: what a file of weights was made for, stored inside the file and enforced at inference."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from istseg.errors import InputError
from istseg.grid import DEFAULT_WORKING_UM
from istseg.network.model import BACKBONES, RNA_INPUTS
from istseg.network.rna_image import FORMS

log = logging.getLogger("istseg")

FORMAT = 1
SCALE_TOLERANCE = 0.02
"""By how much the working resolution of a tile may differ from the model's, as a share."""

PANEL_SHARE = 0.5
"""A model with gene colours needs this share of its genes in a sample, and must know the genes of this share of its transcripts."""
PANEL_MIN_TRANSCRIPTS = 1000
"""Fewer transcripts than this say nothing about the panel."""

NORMALISATIONS = ("percentile_1_99",)
"""Known normalisations: `percentile_1_99`: per stain, 1st–99th percentile of the whole sample → 0…1, not clipped."""


@dataclass
class ModelCard:
    """Facts about a model.

    Attributes
    ----------
    working_um
        Size of a pixel of the input, µm.
    rna_form
        Name of the form of the RNA image, a key of `network.rna_image.FORMS`.
    normalisation
        One of `NORMALISATIONS`.
    logit_threshold
        A pixel is cell above it.
    min_flow
        Cells whose mean flow (unit scale) is shorter are dropped; 0 keeps all.
    backbone
        Key of `network.model.BACKBONES`.
    rna_input
        One of `network.model.RNA_INPUTS`.
    genes
        With gene colours: the genes in the order of the model's table; else empty.
    parent, parent_sha256
        Model that training started from.
    training
        How it was trained: data, steps, loss, seed...
    notes
        What a user should know.
    sha256
        Of the file it was loaded from; empty for a model that was never written.
    """

    name: str
    working_um: float = DEFAULT_WORKING_UM
    rna_form: str = "working"
    normalisation: str = "percentile_1_99"
    logit_threshold: float = -0.5
    min_flow: float = 0.0
    backbone: str = "cnn"
    rna_input: str = "density"
    genes: list[str] = field(default_factory=list)
    parent: str = ""
    parent_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sha256: str = ""
    format: int = FORMAT

    @property
    def image_form(self) -> str | None:
        """Form of the RNA image that is made for the network; None with gene colours, which the network draws itself from a gene map."""
        return self.rna_form if self.rna_input == "density" else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able copy."""
        return asdict(self)

    def to_json(self) -> str:
        """Text that is stored in the file: without its sha256, which is known only afterwards."""
        record = self.as_dict()
        record.pop("sha256")
        return json.dumps(record, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Read and check a card; `where` names the file in messages.

        Raises
        ------
        InputError
            If the text is no card, or of a format, RNA form or normalisation that this version does not know, or values make no sense.
        """
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: its model card is not JSON ({error}); take the file from its source again.") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            found = record.get("format") if isinstance(record, dict) else None
            raise InputError(f"{where}: its model card has the format {found}, this version reads {FORMAT}; use the version of istseg that made it.")
        known = {f.name for f in fields(cls)}
        try:
            card = cls(**{k: v for k, v in record.items() if k in known})
        except TypeError as error:
            raise InputError(f"{where}: its model card is incomplete ({error}); take the file from its source again.") from None
        problems = [f"{where}: its model card has the unknown entry {k!r}; use the version of istseg that made it." for k in sorted(set(record) - known)]
        if problems := problems + card.problems(where):
            raise InputError(problems)
        return card

    def problems(self, where: str) -> list[str]:
        """What this version cannot honour, one sentence each."""
        found = []
        if self.rna_form not in FORMS:
            found.append(
                f"{where}: the model was trained with the RNA image form {self.rna_form!r}, this version knows {sorted(FORMS)}; "
                "update istseg or use another model."
            )
        if not isinstance(self.backbone, str) or self.backbone not in BACKBONES:
            found.append(f"{where}: the model has the backbone {self.backbone!r}, this version knows {sorted(BACKBONES)}; update istseg or use another model.")
        found += self._gene_problems(where)
        if self.normalisation not in NORMALISATIONS:
            found.append(
                f"{where}: the model was trained with the normalisation {self.normalisation!r}, this version knows {list(NORMALISATIONS)}; "
                "update istseg or use another model."
            )
        if not isinstance(self.working_um, (int, float)) or not 0.05 <= self.working_um <= 2:
            found.append(f"{where}: the model's pixel size {self.working_um!r} µm is not between 0.05 and 2; its card is wrong.")
        for name in ("logit_threshold", "min_flow"):
            if not isinstance(getattr(self, name), (int, float)):
                found.append(f"{where}: {name} {getattr(self, name)!r} of the model card is not a number.")
        return found

    def _gene_problems(self, where: str) -> list[str]:
        if self.rna_input not in RNA_INPUTS:
            return [f"{where}: the model has the RNA input {self.rna_input!r}, this version knows {list(RNA_INPUTS)}; update istseg or use another model."]
        if not isinstance(self.genes, list) or not all(isinstance(gene, str) for gene in self.genes):
            return [f"{where}: the genes of the model card are not a list of names; its card is wrong."]
        if bool(self.genes) == (self.rna_input == "density"):
            found = f"names {len(self.genes)} genes" if self.genes else "names no genes"
            return [f"{where}: the model card {found}, which does not go with the RNA input {self.rna_input}; its card is wrong."]
        if twice := sorted(gene for gene, n in Counter(self.genes).items() if n > 1):
            return [f"{where}: the model card names genes more than once: {', '.join(twice[:6])}; its card is wrong."]
        return []

    def check_panel(self, transcripts: Mapping[str, int], where: str) -> None:
        """Refuse a sample of another gene panel than the model's; log figures when some genes differ. Without gene colours every panel is right.

        Parameters
        ----------
        transcripts
            Number of transcripts of each gene that the sample has, controls left out; a gene without any may be there.
        where
            Names the sample in messages.

        Raises
        ------
        InputError
            If less than half of the model's genes are in the sample, or less than half of its transcripts are of genes that the model knows.
        """
        total = sum(transcripts.values())
        if not self.genes or not total:
            return
        present = sum(gene in transcripts for gene in self.genes)
        known = sum(transcripts.get(gene, 0) for gene in self.genes)
        figures = (
            f"{present} of the {len(self.genes)} genes of the model {self.name} are in the sample, "
            f"and the model knows the genes of {known} of its {total} transcripts ({known / total:.1%})"
        )
        if total >= PANEL_MIN_TRANSCRIPTS and (present < PANEL_SHARE * len(self.genes) or known < PANEL_SHARE * total):
            raise InputError(
                f"{where}: {figures}; at least half of both are needed. A model with gene colours ({self.rna_input}) is made for one panel: "
                "use a model of this panel, or one with the RNA input density."
            )
        if present < len(self.genes) or known < total:
            log.warning("%s: %s; the other transcripts are not drawn", where, figures)

    def check_tile(self, working_um: float, where: str) -> None:
        """Refuse input of another resolution than the model's.

        Raises
        ------
        InputError
            If `working_um` differs from the card's by more than 2 %.
        """
        if abs(working_um / self.working_um - 1) > SCALE_TOLERANCE:
            raise InputError(
                f"{where}: its working pixel is {working_um:g} µm, but the model {self.name} was trained at {self.working_um:g} µm (2 % may differ); "
                f"set working_um to {self.working_um:g} (`istseg tile --working-um`) or use a model of that resolution."
            )
