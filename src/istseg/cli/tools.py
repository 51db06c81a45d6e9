"""Commands beside the road: doctor, co-expression, stress, training of a base model, simulated samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from istseg.cli.options import (
    Backbone,
    Contain,
    Device,
    Existing,
    Intersect,
    MinArea,
    Network,
    NucleusDiameter,
    Out,
    Precision,
    PrecisionOption,
    Seed,
    SimulatedPlatform,
    app,
    numbers,
)
from istseg.grid import DEFAULT_WORKING_UM


@app.command()
def doctor(
    device: Device = "cpu",
    weights: Annotated[Optional[list[Path]], typer.Option(help="Files of weights whose checksums are told. Repeatable.")] = None,
    assets: Annotated[Optional[Path], typer.Option(**Existing, help="The pipeline's `assets/`. Default: that of the checkout, if this runs in one.")] = None,
    disk: Annotated[Path, typer.Option(help="Folder whose free space counts.")] = Path("."),
    min_disk_gb: Annotated[float, typer.Option(min=0, help="Least free space there, GB.")] = 1.0,
    programs: Annotated[Optional[Path], typer.Option(**Existing, help="Folder of the comparators' programs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what this machine or container has of what istseg needs; exit status 1 when runs would fail."""
    from rich.console import Console

    from istseg import doctor as module

    checks = list(module.examine(device=device, weights=weights, assets=assets, disk=disk, min_disk_gb=min_disk_gb, programs=programs))
    if as_json:
        typer.echo(module.as_json(checks))
    else:
        Console(soft_wrap=True).print(module.as_table(checks))
    if any(check.state == module.BAD for check in checks):
        raise typer.Exit(1)


@app.command()
def coexpression(
    sample_json: Annotated[Path, typer.Option(**Existing)],
    zarr: Annotated[Path, typer.Option(**Existing, help="`<sample>.zarr` of convert or export; it is only read.")],
    out: Out,
    radius_um: Annotated[float, typer.Option(min=0.5, max=50, help="Reach of a neighbourhood, µm: about a cell's radius.")] = 4.0,
    centres: Annotated[int, typer.Option(min=1000, help="About so many transcripts whose neighbourhoods are taken.")] = 100_000,
    region: Annotated[Optional[list[str]], typer.Option(help="`x0,y0,x1,y1` in µm: drawn beside the whole sample. Repeatable.")] = None,
    picture_px: Annotated[int, typer.Option(min=200, max=10_000, help="Longest side of a picture.")] = 2500,
    spot_um: Annotated[float, typer.Option(min=0, max=10, help="Standard deviation of a transcript's spot, µm.")] = 0.35,
    layer_um: Annotated[float, typer.Option(min=0, help="Pixel of the SpatialData image for annotators, µm, at least 0.1; 0: no image.")] = 0.5,
    seed: Seed = 0,
) -> None:
    """Show a sample's transcripts in colours that co-expressed genes share."""
    from istseg.stages import coexpression as stage

    stage.run(
        sample_json=sample_json, zarr=zarr, out=out, radius_um=radius_um, centres=centres, regions=region or [], picture_px=picture_px, spot_um=spot_um,
        layer_um=layer_um, seed=seed,
    )  # fmt: skip


@app.command()
def schedule(
    trace: Annotated[Path, typer.Option(**Existing, help="`pipeline_info/trace.tsv` of a run.")],
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of a node.")] = 16,
    memory_gb: Annotated[float, typer.Option(min=0.1, help="Memory of a node.")] = 64.0,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a node; 0: the network runs on CPUs.")] = 0,
    samples: Annotated[Optional[int], typer.Option(min=1, help="As many samples, each a copy of one of the run. Default: those of the run.")] = None,
) -> None:
    """Say how long a run would take on other nodes, and which stage decides that (a dry run from a trace)."""
    from istseg import schedule as simulator

    tasks = simulator.read_trace(trace, gpus > 0)
    plan = simulator.simulate(simulator.cohort(tasks, samples) if samples else tasks, [simulator.Node(cpus, int(memory_gb * 1e9), gpus)] * nodes)
    typer.echo(f"wall time {plan.seconds / 3600:.2f} h; bottleneck {plan.bottleneck} ({plan.share:.0%} of it); CPUs busy {plan.busy:.0%}")
    for stage, seconds in sorted(plan.waited.items(), key=lambda item: -item[1])[:5]:
        typer.echo(f"waited for a node: {stage} {seconds / 3600:.2f} h in all its tasks")


@app.command()
def stress(
    sample_json: Annotated[Path, typer.Option(**Existing)],
    zarr: Annotated[Path, typer.Option(**Existing, help="`<sample>.zarr` of convert or export; it is only read.")],
    model: Annotated[Path, typer.Option(help="Weights (.safetensors, or .pt of the published package).")],
    out: Out,
    model_sha256: Annotated[Optional[str], typer.Option(help="Checksum that the weights must have.")] = None,
    region: Annotated[Optional[str], typer.Option(help="`x0,y0,x1,y1` in µm, at most 1000 µm wide. Default: the box with the most transcripts.")] = None,
    side_um: Annotated[float, typer.Option(min=50, max=1000, help="Side of that box.")] = 250.0,
    contours: Annotated[
        str, typer.Option(help="Shares of the contour that are removed in every membrane stain, each at its own place; `none`.")
    ] = "0.1,0.3,0.5,0.7,0.9",
    cells: Annotated[float, typer.Option(min=0, max=1, help="Share of the cells whose contour is broken.")] = 0.3,
    vendor_cells: Annotated[
        Optional[Path], typer.Option(**Existing, help="`vendor_cells.parquet`: whose contours are broken. Default: those of the clean segmentation.")
    ] = None,
    rna: Annotated[str, typer.Option(help="Shares of the transcripts that are kept; `none`.")] = "0.9,0.8,0.7,0.6,0.5",
    dim: Annotated[str, typer.Option(help="Shares of the membrane stains' light that are left; `none`.")] = "0.5,0.25,0.1",
    blur: Annotated[str, typer.Option(help="Blurs of the membrane stains (sigma, µm); `none`.")] = "0.5,1,2",
    nucleus_diameter_um: NucleusDiameter = 6.5,
    min_nucleus_area_um2: MinArea = 8.0,
    contain: Contain = 0.95,
    intersect: Intersect = 0.05,
    spurious_percentile: Annotated[float, typer.Option(min=0, max=50)] = 5.0,
    working_um: Annotated[float, typer.Option(min=0.05, max=2, help="Size of a working pixel, µm.")] = DEFAULT_WORKING_UM,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows per step of the network.")] = 1,
    device: Device = "cpu",
    precision: PrecisionOption = Precision.auto,
    seed: Seed = 0,
) -> None:
    """Make a region of a sample worse, step by step, and tell how the segmentation holds up."""
    from istseg.stages import stress as stage
    from istseg.teachers.watershed import Sizes

    stage.run(
        sample_json=sample_json, zarr=zarr, model=model, out=out, model_sha256=model_sha256, region=region, side_um=side_um,
        levels={"contours": numbers("--contours", contours), "dim": numbers("--dim", dim), "blur": numbers("--blur", blur), "rna": numbers("--rna", rna)},
        cells=cells, vendor_cells=vendor_cells, sizes=Sizes(nucleus_diameter_um=nucleus_diameter_um, min_nucleus_area_um2=min_nucleus_area_um2),
        contain=contain, intersect=intersect, spurious_percentile=spurious_percentile, working_um=working_um, batch_size=batch_size, device=device,
        precision=precision.value, seed=seed,
    )  # fmt: skip


@app.command()
def pretrain(
    out: Out,
    name: Annotated[str, typer.Option(help="Name of the model.")] = "pretrained",
    base: Annotated[str, typer.Option(help="Weights to go on from, or `scratch`.")] = "scratch",
    base_sha256: Annotated[Optional[str], typer.Option(help="Checksum that the base must have.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 12_000,
    seconds: Annotated[Optional[float], typer.Option(min=1, help="Stop earlier, after so many seconds of training.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 20,
    crop_wpx: Annotated[int, typer.Option(min=128, max=512, help="Side of the crops that are trained on.")] = 320,
    tissues: Annotated[int, typer.Option(min=1, help="Tissues that are kept ready.")] = 2048,
    tissue_wpx: Annotated[int, typer.Option(min=160, help="Side of a tissue.")] = 640,
    learning_rate: Annotated[float, typer.Option(min=1e-7, max=1)] = 1e-3,
    warmup: Annotated[int, typer.Option(min=1, help="Steps over which the rate rises.")] = 300,
    freeze_norm: Annotated[bool, typer.Option(help="Keep the statistics of batch normalisation: for going on from a base in small batches.")] = False,
    pictures_per_family: Annotated[int, typer.Option(min=1, help="Held-out pictures of each of the eight families of tissue.")] = 4,
    picture_wpx: Annotated[int, typer.Option(min=128)] = 384,
    network: Annotated[Network, typer.Option(help="`istseg`: the base model; `genesegnet`: the comparator.")] = Network.istseg,
    backbone: Annotated[Backbone, typer.Option(help="Of a base model from scratch.")] = Backbone.cnn,
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Train a base model on painted tissue alone; choose its filter and measure it on held-out tissue."""
    from istseg.pretrain.fit import Recipe
    from istseg.stages import pretrain as stage

    recipe = Recipe(
        steps=steps, seconds=seconds, batch_size=batch_size, side=crop_wpx, n_tissues=tissues, tissue_side=tissue_wpx, learning_rate=learning_rate,
        warmup=warmup, freeze_norm=freeze_norm, seed=seed,
    )  # fmt: skip
    stage.run(
        out=out, name=name, base=base, base_sha256=base_sha256, recipe=recipe, pictures_per_family=pictures_per_family, picture_wpx=picture_wpx, device=device,
        network=network.value, backbone=backbone.value,
    )  # fmt: skip


@app.command()
def simulate(
    out: Out,
    platform: Annotated[SimulatedPlatform, typer.Option()] = SimulatedPlatform.merscope,
    width_um: Annotated[float, typer.Option(min=20)] = 200.0,
    height_um: Annotated[float, typer.Option(min=20)] = 200.0,
    planes: Annotated[int, typer.Option(min=1, max=12)] = 3,
    stains: Annotated[str, typer.Option(help="Membrane and cytoplasm stains, separated by `;`; `none` for none.")] = "Cellbound1;PolyT",
    degraded_fraction: Annotated[float, typer.Option(min=0, max=1, help="Share of the cells whose contour is broken in all membrane stains.")] = 0.0,
    degraded_contour: Annotated[float, typer.Option(min=0, max=1, help="Share of the contour that is removed.")] = 0.5,
    transcripts_per_um2: Annotated[float, typer.Option(min=0)] = 1.0,
    empty_fraction: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the area without tissue.")] = 0.1,
    autofluorescence: Annotated[float, typer.Option(min=0, help="Granules that shine in every stain, relative to a strong stain.")] = 0.0,
    generation: Annotated[str, typer.Option(help="CosMx: `A`, `B` or `C`; MERSCOPE: `hdf5` or `parquet` vendor cells. Default: A, parquet.")] = "",
    seed: Seed = 0,
) -> None:
    """Write a raw folder of simulated tissue, with its truth beside it."""
    from istseg.stages import simulate as stage

    stage.run(
        out=out, platform=platform.value, width_um=width_um, height_um=height_um, planes=planes, stains=stains, degraded_fraction=degraded_fraction,
        degraded_contour=degraded_contour, transcripts_per_um2=transcripts_per_um2, empty_fraction=empty_fraction, generation=generation, seed=seed,
        autofluorescence=autofluorescence,
    )  # fmt: skip
