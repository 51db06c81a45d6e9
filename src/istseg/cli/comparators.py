"""`istseg comparator`: other ways to segment a sample, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from istseg.cli.options import (
    CellDiameter,
    Checksum,
    Contain,
    CytoWeights,
    DensitySigma,
    Device,
    Existing,
    Intersect,
    MinArea,
    NucleiWeights,
    NucleusDiameter,
    Out,
    Precision,
    comparator_app,
)


@comparator_app.command(name="tiles")
def comparator_tiles(
    method: Annotated[str, typer.Option(help="A tile-wise comparator: watershed, cellpose, expansion, genesegnet.")],
    tile: Annotated[list[Path], typer.Option(**Existing, help="Tile folder. Repeatable.")],
    out: Out,
    teacher_labels: Annotated[Optional[Path], typer.Option(**Existing, help="Folder with the teacher's labels of these tiles, by tile id: its nuclei.")] = None,
    nuclei_weights: NucleiWeights = None,
    nuclei_sha256: Checksum = None,
    cyto_weights: CytoWeights = None,
    cyto_sha256: Checksum = None,
    cell_diameter_um: CellDiameter = 6.5,
    nucleus_diameter_um: NucleusDiameter = 6.5,
    min_nucleus_area_um2: MinArea = 8.0,
    min_cell_area_um2: MinArea = 12.8,
    expansion_um: Annotated[float, typer.Option(min=0, max=30, help="How far `expansion` lets nuclei grow.")] = 5.0,
    genesegnet_weights: Annotated[Optional[Path], typer.Option(help="Weights of `genesegnet`.")] = None,
    genesegnet_sha256: Checksum = None,
    genesegnet_membranes: Annotated[bool, typer.Option(help="`genesegnet` sees the membrane stains; else the nucleus stain alone.")] = True,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of `genesegnet`; as in segment.")] = Precision.auto,
    density_sigma_um: DensitySigma = 1.08,
    contain: Contain = 0.95,
    intersect: Intersect = 0.05,
    device: Device = "cpu",
) -> None:
    """Label tiles by a comparator."""
    from istseg.comparators import Settings
    from istseg.stages import comparator as stage
    from istseg.teachers.watershed import Sizes

    settings = Settings(
        sizes=Sizes(nucleus_diameter_um, cell_diameter_um, min_nucleus_area_um2, min_cell_area_um2), teacher_labels=teacher_labels,
        weights={"nuclei": nuclei_weights, "cyto": cyto_weights, "genesegnet": genesegnet_weights},
        sha256={"nuclei": nuclei_sha256, "cyto": cyto_sha256, "genesegnet": genesegnet_sha256},
        expansion_um=expansion_um, membranes=genesegnet_membranes, device=device, precision=precision.value,
    )  # fmt: skip
    stage.tiles(method=method, tiles=tile, out=out, settings=settings, density_sigma_um=density_sigma_um, contain=contain, intersect=intersect)


@comparator_app.command(name="merge")
def comparator_merge(
    segmentation: Annotated[str, typer.Option(help="Name of the segmentation.")],
    tiles_json: Annotated[Path, typer.Option(**Existing)],
    labels: Annotated[Path, typer.Option(**Existing, help="Folder with the tiles' folders of `comparator tiles`.")],
    out: Out,
) -> None:
    """Put the cells of all tiles together."""
    from istseg.stages import comparator as stage

    stage.merge(segmentation=segmentation, tiles_json=tiles_json, labels=labels, out=out)


@comparator_app.command(name="prepare")
def comparator_prepare(
    method: Annotated[str, typer.Option(help="A foreign program: proseg, comseg, baysor.")],
    sample_json: Annotated[Path, typer.Option(**Existing)],
    transcripts: Annotated[Path, typer.Option(**Existing, help="`points.parquet` of the sample.")],
    nuclei: Annotated[Path, typer.Option(**Existing, help="`nuclei.parquet`.")],
    labels: Annotated[Path, typer.Option(**Existing, help="`labels.zarr` with the array `nuclei`.")],
    out: Out,
    init: Annotated[Optional[Path], typer.Option(**Existing, help="Cells to start from instead of the nuclei.")] = None,
) -> None:
    """Write a sample in the neutral form that foreign programs are given."""
    from istseg.stages import comparator as stage

    stage.prepare(method=method, sample_json=sample_json, transcripts=transcripts, nuclei=nuclei, labels=labels, out=out, init=init)


@comparator_app.command(name="collect")
def comparator_collect(
    method: Annotated[str, typer.Option(help="A foreign program: proseg, comseg, baysor.")],
    sample_json: Annotated[Path, typer.Option(**Existing)],
    transcripts: Annotated[Path, typer.Option(**Existing, help="`points.parquet` of the sample.")],
    prepared: Annotated[Path, typer.Option(**Existing, help="Folder of `comparator prepare`.")],
    output: Annotated[Path, typer.Option(**Existing, help="Folder with what the program wrote.")],
    out: Out,
) -> None:
    """Read what a foreign program gave."""
    from istseg.stages import comparator as stage

    stage.collect(method=method, sample_json=sample_json, transcripts=transcripts, prepared=prepared, raw=output, out=out)
