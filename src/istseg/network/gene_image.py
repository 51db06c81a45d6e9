"""The RNA image in colours: three values per gene [paper: RNA2seg with colors for each RNA species]."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from istseg.network.field import reflect
from istseg.network.rna_image import RnaForm


class GeneImage(nn.Module):
    """Gene map → image of three channels, differentiable in the colours.

    Each molecule is drawn as the square of the form's maximum filter, then blurred and scaled as the RNA image of that form (`network.rna_image`). Where
    squares overlap, a pixel shows the molecule that is first in reading order (uppermost, then leftmost), as in the published package.

    Parameters
    ----------
    n_genes
        Length of the model's list of genes.
    form
        Of the RNA image.
    learned
        The colours are a parameter, drawn evenly from 0…1; else a buffer, grey until `table` is filled.

    Attributes
    ----------
    table
        (1 + n_genes, 3): colour of each number of a gene map. Row 0 is 0 and gets no gradient.
    """

    def __init__(self, n_genes: int, form: RnaForm, learned: bool):
        super().__init__()
        self.form = form
        table = torch.rand(n_genes + 1, 3) if learned else torch.full((n_genes + 1, 3), 0.5)
        table[0] = 0
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)

    def forward(self, genes: Tensor) -> Tensor:
        """(B, 1, H, W) gene maps of any number type → (B, 3, H, W) float32. Beyond the borders the picture is continued by reflection."""
        shown = draw_squares(genes, self.form.max_filter)[:, 0].long()
        # Not in reduced precision: the RNA image is not either.
        with torch.autocast(genes.device.type, enabled=False):
            image = functional.embedding(shown, self.table.float(), padding_idx=0).permute(0, 3, 1, 2)
            down, across = (blur_matrix(size, self.form).to(image.device) for size in image.shape[-2:])
            return down @ image @ across.T * self.form.gain


def blur_matrix(size: int, form: RnaForm) -> Tensor:
    """(size, size) float32: product with a column of pixels is its Gaussian blur, continued by reflection (a product is not rounded to TF32)."""
    if form.sigma == 0:
        return torch.eye(size)
    reach = form.side // 2
    matrix = np.zeros((size, size))
    for shift, weight in enumerate(cv2.getGaussianKernel(form.side, form.sigma)[:, 0], -reach):
        matrix[np.arange(size), reflect(shift, size + shift, size)] += weight
    return torch.from_numpy(matrix.astype(np.float32))


def draw_squares(genes: Tensor, side: int) -> Tensor:
    """(B, 1, H, W) gene maps in which each molecule fills side × side pixels; an even square reaches one pixel further down and right, as in `rna_image`."""
    height, width = genes.shape[-2:]
    padded = reflected(genes, side // 2, side - 1 - side // 2)
    shown = padded[..., :height, :width]
    for dy in range(side):
        for dx in range(side):
            shown = torch.where(shown == 0, padded[..., dy : dy + height, dx : dx + width], shown)
    return shown


def reflected(image: Tensor, before: int, after: int) -> Tensor:
    """Continued by reflection, borders repeated, above and left by `before` and below and right by `after` pixels."""
    rows, columns = (torch.from_numpy(reflect(-before, size + after, size)).to(image.device) for size in image.shape[-2:])
    return image[..., rows, :][..., columns]
