"""Commands of the road, in its order: those that Nextflow's processes call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from istseg.cli.options import (
    Backbone,
    CellDiameter,
    Checksum,
    Contain,
    CytoWeights,
    DensitySigma,
    Device,
    Existing,
    GeneColours,
    Intersect,
    MinArea,
    NucleiWeights,
    NucleusDiameter,
    Out,
    Platform,
    Precision,
    PrecisionOption,
    RnaInput,
    Seed,
    TeacherName,
    Unit,
    app,
    pairs,
)
from istseg.grid import DEFAULT_OVERLAP_UM, DEFAULT_TILE_UM, DEFAULT_WORKING_UM


@app.command()
def preflight(
    samplesheet: Annotated[Path, typer.Option(**Existing, help="Samplesheet (CSV).")],
    out: Out,
    raw: Annotated[
        Optional[list[str]], typer.Option(help="`sample=folder`: where the raw folder of a sample is staged, instead of the samplesheet's path. Repeatable.")
    ] = None,
    annotations: Annotated[Optional[list[str]], typer.Option(help="`sample=file`: where the annotated cells of a sample are staged. Repeatable.")] = None,
    params: Annotated[Optional[Path], typer.Option(**Existing, help="All parameters of the run as JSON, checked against nextflow_schema.json.")] = None,
    schema: Annotated[Optional[Path], typer.Option(**Existing, help="nextflow_schema.json.")] = None,
    device: Device = "cpu",
    disk: Annotated[Optional[Path], typer.Option(help="Folder whose free space must hold the results.")] = None,
    model: Annotated[Optional[Path], typer.Option(help="Base model of the run.")] = None,
    nuclei_weights: Annotated[Optional[Path], typer.Option(help="Weights of the teacher cellpose.")] = None,
    cyto_weights: Annotated[Optional[Path], typer.Option(help="Weights of the teacher cellpose.")] = None,
    genesegnet_weights: Annotated[Optional[Path], typer.Option(help="Weights of the comparator genesegnet.")] = None,
    limits: Annotated[Optional[Path], typer.Option(help="Limits of the report's checks (qc_thresholds).")] = None,
    programs: Annotated[
        Optional[Path], typer.Option(help="Folder of the comparators' programs (`make comparators`); left out where they are containers.")
    ] = None,
    marker_pairs: Annotated[Optional[Path], typer.Option(help="Pairs of genes that exclude each other.")] = None,
    markers: Annotated[Optional[Path], typer.Option(help="Markers of cell types.")] = None,
) -> None:
    """Check samples, parameters, weights and machine before any work: all problems at once."""
    from istseg.stages import preflight as stage

    stage.run(
        samplesheet=samplesheet, out=out, raw=pairs("raw", raw), annotations=pairs("annotations", annotations), params=params, schema=schema,
        device=device, disk=disk, model=model, nuclei_weights=nuclei_weights, cyto_weights=cyto_weights, limits=limits,
        genesegnet_weights=genesegnet_weights, programs=programs, marker_pairs=marker_pairs, markers=markers,
    )  # fmt: skip


@app.command()
def convert(
    raw: Annotated[Path, typer.Option(**Existing, help="Raw folder of one sample.")],
    sample: Annotated[str, typer.Option(help="Name of the sample.")],
    platform: Annotated[Platform, typer.Option()],
    out: Out,
    nucleus_stain: Annotated[Optional[str], typer.Option(help="Nucleus stain; default: DAPI or the platform's DNA channel.")] = None,
    membrane_stains: Annotated[
        Optional[str], typer.Option(help="Stains for the network, separated by `;`. Default: the platform's membrane and cytoplasm stains; `none` for none.")
    ] = None,
    z_planes: Annotated[str, typer.Option(help="`focus` (best focused plane), one plane (`3`), a range by maximum projection (`1-5`) or `all`.")] = "focus",
    fovs: Annotated[Optional[str], typer.Option(help="CosMx: fields of view of this sample, e.g. `1-20;33`. Default: all.")] = None,
    pixel_size_um: Annotated[Optional[float], typer.Option(min=0.01, max=5, help="CosMx: pixel size where the files do not say it.")] = None,
) -> None:
    """Read a raw folder once, as a stream, into SpatialData."""
    from istseg.stages import convert as stage

    stage.run(
        raw=raw, sample=sample, platform=platform.value, out=out, nucleus_stain=nucleus_stain, membrane_stains=membrane_stains,
        z_planes=z_planes, fovs=fovs, pixel_size_um=pixel_size_um,
    )  # fmt: skip


@app.command()
def tile(
    sample_json: Annotated[Path, typer.Option(**Existing)],
    zarr: Annotated[Path, typer.Option(**Existing, help="`<sample>.zarr` of convert.")],
    out: Out,
    working_um: Annotated[float, typer.Option(min=0.05, max=2, help="Size of a working pixel, µm.")] = DEFAULT_WORKING_UM,
    tile_um: Annotated[float, typer.Option(min=50, help="Side of a tile's core, µm; rounded up to whole windows.")] = DEFAULT_TILE_UM,
    overlap_um: Annotated[float, typer.Option(min=0, max=64, help="Overlap of neighbouring windows, µm; at least a cell's diameter.")] = DEFAULT_OVERLAP_UM,
    min_transcripts: Annotated[int, typer.Option(min=1, help="Transcripts that make a 24 µm square count as tissue.")] = 3,
) -> None:
    """Cut a converted sample into self-contained tiles at working resolution."""
    from istseg.stages import tile as stage

    stage.run(sample_json=sample_json, zarr=zarr, out=out, working_um=working_um, tile_um=tile_um, overlap_um=overlap_um, min_transcripts=min_transcripts)


@app.command()
def teach(
    tile: Annotated[list[Path], typer.Option(**Existing, help="Tile folder. Repeatable.")],
    out: Out,
    teacher: Annotated[TeacherName, typer.Option()] = TeacherName.watershed,
    vendor_cells: Annotated[Optional[Path], typer.Option(**Existing, help="`vendor_cells.parquet`, for the teacher `vendor`.")] = None,
    nuclei_weights: NucleiWeights = None,
    nuclei_sha256: Checksum = None,
    cyto_weights: CytoWeights = None,
    cyto_sha256: Checksum = None,
    cell_diameter_um: CellDiameter = 6.5,
    nucleus_diameter_um: NucleusDiameter = 6.5,
    min_nucleus_area_um2: MinArea = 8.0,
    min_cell_area_um2: MinArea = 12.8,
    density_sigma_um: DensitySigma = 1.08,
    contain: Contain = 0.95,
    intersect: Intersect = 0.05,
    device: Device = "cpu",
) -> None:
    """Label nuclei and, per membrane stain, cells by a teacher."""
    from istseg.stages import teach as stage

    stage.run(
        tiles=tile, out=out, teacher=teacher.value, vendor_cells=vendor_cells,
        nuclei_weights=nuclei_weights, nuclei_sha256=nuclei_sha256, cyto_weights=cyto_weights, cyto_sha256=cyto_sha256,
        cell_diameter_um=cell_diameter_um, nucleus_diameter_um=nucleus_diameter_um,
        min_nucleus_area_um2=min_nucleus_area_um2, min_cell_area_um2=min_cell_area_um2,
        density_sigma_um=density_sigma_um, contain=contain, intersect=intersect, device=device,
    )  # fmt: skip


@app.command()
def calibrate(
    labels: Annotated[list[Path], typer.Option(**Existing, help="`sketch.json` of a tile, or a folder below which all `sketch.json` are taken. Repeatable.")],
    out: Out,
    background_percentile: Annotated[float, typer.Option(min=0, max=50)] = 5.0,
    spurious_percentile: Annotated[float, typer.Option(min=0, max=50)] = 5.0,
) -> None:
    """Derive the thresholds of a sample from the sketches of its tiles."""
    from istseg.stages import calibrate as stage

    stage.run(labels=labels, out=out, background_percentile=background_percentile, spurious_percentile=spurious_percentile)


@app.command()
def curate(
    tile: Annotated[list[Path], typer.Option(**Existing, help="Tile folder. Repeatable.")],
    labels: Annotated[Path, typer.Option(**Existing, help="Folder with the teacher's labels of these tiles, by tile id.")],
    thresholds: Annotated[Path, typer.Option(**Existing)],
    out: Out,
    contain: Contain = 0.95,
    intersect: Intersect = 0.05,
    max_background: Annotated[float, typer.Option(min=0, max=1, help="T_bg")] = 0.05,
    density_sigma_um: DensitySigma = 1.08,
    patches: Annotated[bool, typer.Option(help="Write training patches, not only the counts.")] = True,
    min_objects: Annotated[int, typer.Option(min=1, help="Kept cells that a patch needs.")] = 3,
) -> None:
    """Keep what nuclei and RNA density confirm; write training patches."""
    from istseg.stages import curate as stage

    stage.run(
        tiles=tile, labels=labels, thresholds=thresholds, out=out, contain=contain, intersect=intersect,
        max_background=max_background, density_sigma_um=density_sigma_um, patches=patches, min_objects=min_objects,
    )  # fmt: skip


@app.command()
def train(
    patches: Annotated[list[Path], typer.Option(**Existing, help="Folder with patches. Repeatable: a cohort.")],
    out: Out,
    name: Annotated[str, typer.Option(help="Name of the model.")] = "finetuned",
    base: Annotated[str, typer.Option(help="Base weights (.safetensors, or .pt of the published package), or `scratch`.")] = "scratch",
    base_sha256: Annotated[Optional[str], typer.Option()] = None,
    backbone: Annotated[Optional[Backbone], typer.Option(help="With `--base scratch`; a base keeps its own. Default: cnn.")] = None,
    rna_input: Annotated[
        Optional[RnaInput], typer.Option(help="Default: density from scratch, a base's own. With another, what reads the RNA learns anew, all else goes on.")
    ] = None,
    epochs: Annotated[Optional[int], typer.Option(min=1, help="Default: 20 from a base, 30 from scratch.")] = None,
    patience: Annotated[
        Optional[int], typer.Option(min=0, help="Stop after so many epochs without a better validation; 0: never. Default: 5 from a base, 0 from scratch.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(min=1e-7, max=1)] = 1e-3,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    membrane_dropout: Annotated[float, typer.Option(min=0, max=1)] = 0.25,
    validation_fraction: Annotated[float, typer.Option(min=0.01, max=0.5)] = 0.05,
    holdout_fraction: Annotated[float, typer.Option(min=0.01, max=0.5)] = 0.1,
    max_patches: Annotated[int, typer.Option(min=4, help="More patches than this are thinned out evenly.")] = 800,
    crop_wpx: Annotated[int, typer.Option(min=64, max=512, help="Side of the random crop that is trained on.")] = 512,
    device: Device = "cpu",
    precision: PrecisionOption = Precision.auto,
    seed: Seed = 0,
) -> None:
    """Fine-tune the network on curated patches, then accept it or keep the base."""
    from istseg.stages import train as stage

    stage.run(
        patches=patches, out=out, name=name, base=base, base_sha256=base_sha256, backbone=backbone.value if backbone else None,
        rna_input=rna_input.value if rna_input else None, epochs=epochs, patience=patience, learning_rate=learning_rate, batch_size=batch_size,
        membrane_dropout=membrane_dropout, validation_fraction=validation_fraction, holdout_fraction=holdout_fraction,
        max_patches=max_patches, crop_wpx=crop_wpx, device=device, precision=precision.value, seed=seed,
    )  # fmt: skip


@app.command()
def segment(
    tile: Annotated[list[Path], typer.Option(**Existing, help="Tile folder. Repeatable.")],
    model: Annotated[Path, typer.Option(help="Weights (.safetensors, or .pt of the published package).")],
    out: Out,
    model_sha256: Annotated[Optional[str], typer.Option(help="Checksum that the weights must have.")] = None,
    logit_threshold: Annotated[Optional[float], typer.Option(help="Default: the model card's.")] = None,
    min_flow: Annotated[Optional[float], typer.Option(min=0, max=1, help="Cells with a weaker mean flow are dropped. Default: the model card's.")] = None,
    flow_error: Annotated[float, typer.Option(min=0, help="Cells whose flow differs more from their shape's are dropped; 0 keeps all.")] = 0.9,
    min_cell_area_um2: MinArea = 12.8,
    flow_steps: Annotated[int, typer.Option(min=10)] = 60,
    batch_size: Annotated[Optional[int], typer.Option(min=1, help="Windows per step of the network. Default: 1 on a CPU, 32 on a GPU.")] = None,
    device: Device = "cpu",
    precision: PrecisionOption = Precision.auto,
) -> None:
    """Segment tiles with the network."""
    from istseg.stages import segment as stage

    stage.run(
        tiles=tile, model=model, out=out, model_sha256=model_sha256, logit_threshold=logit_threshold, min_flow=min_flow,
        flow_error=flow_error, min_cell_area_um2=min_cell_area_um2, flow_steps=flow_steps, batch_size=batch_size, device=device, precision=precision.value,
    )  # fmt: skip


@app.command()
def merge(
    tiles_json: Annotated[Path, typer.Option(**Existing)],
    cells: Annotated[Path, typer.Option(**Existing, help="Folder with the tiles' folders of segment.")],
    teacher: Annotated[Path, typer.Option(**Existing, help="Folder with the tiles' folders of teach.")],
    thresholds: Annotated[Path, typer.Option(**Existing)],
    out: Out,
) -> None:
    """Put the cells and nuclei of all tiles together."""
    from istseg.stages import merge as stage

    stage.run(tiles_json=tiles_json, cells=cells, teacher=teacher, thresholds=thresholds, out=out)


@app.command()
def assign(
    sample_json: Annotated[Path, typer.Option(**Existing)],
    transcripts: Annotated[Path, typer.Option(**Existing, help="`points.parquet` of the sample.")],
    cells: Annotated[Path, typer.Option(**Existing, help="`<segmentation>.cells.parquet`.")],
    segmentation: Annotated[str, typer.Option(help="Name of the segmentation.")],
    out: Out,
    labels: Annotated[
        Optional[Path], typer.Option(**Existing, help="`labels.zarr` with an array of the segmentation's name; without it the polygons are used.")
    ] = None,
    assignment: Annotated[
        Optional[Path], typer.Option(**Existing, help="`<segmentation>.assignment.parquet`: the cell of each transcript, said by the method itself.")
    ] = None,
    planes: Annotated[
        Optional[Path], typer.Option(**Existing, help="`vendor_planes.parquet`: outlines plane by plane; a transcript is looked up among those of its plane.")
    ] = None,
) -> None:
    """Give every transcript its cell and count."""
    from istseg.stages import assign as stage

    stage.run(
        sample_json=sample_json, transcripts=transcripts, cells=cells, segmentation=segmentation, out=out, labels=labels, assignment=assignment, planes=planes
    )


@app.command()
def assess(
    sample_json: Annotated[Path, typer.Option(**Existing)],
    tiles: Annotated[Path, typer.Option(**Existing, help="Folder `tiles/` of the sample.")],
    counts: Annotated[Path, typer.Option(**Existing, help="Folder of assign: `counts.h5ad`, `transcripts.parquet`, `assign.json`.")],
    cells: Annotated[Path, typer.Option(**Existing, help="`<segmentation>.cells.parquet`.")],
    nuclei: Annotated[Path, typer.Option(**Existing, help="`nuclei.parquet`.")],
    thresholds: Annotated[Path, typer.Option(**Existing)],
    segmentation: Annotated[str, typer.Option(help="Name of the segmentation.")],
    out: Out,
    contain: Contain = 0.95,
    intersect: Intersect = 0.05,
    umap_cells: Annotated[int, typer.Option(min=0, help="At most so many cells in the UMAP; 0 for none.")] = 20000,
    crops: Annotated[int, typer.Option(min=0, help="Example pictures per flag.")] = 6,
    merge_json: Annotated[Optional[Path], typer.Option(**Existing, help="`merge.json`: says how the segmentation was made; kept in `uns`.")] = None,
    marker_pairs: Annotated[
        Optional[Path], typer.Option(**Existing, help="CSV (gene_a, gene_b): genes that exclude each other. Default: found from the nuclei.")
    ] = None,
    markers: Annotated[Optional[Path], typer.Option(**Existing, help="CSV (gene, cell_type): markers, for the marker purity.")] = None,
    gene_colours: GeneColours = None,
    seed: Seed = 0,
) -> None:
    """Flag spurious and inconsistent cells and measure the segmentation."""
    from istseg.stages import assess as stage

    stage.run(
        sample_json=sample_json, tiles=tiles, counts=counts, cells=cells, nuclei=nuclei, thresholds=thresholds, segmentation=segmentation, out=out,
        contain=contain, intersect=intersect, umap_cells=umap_cells, crops=crops, merge_json=merge_json, marker_pairs=marker_pairs, markers=markers,
        colours=gene_colours, seed=seed,
    )  # fmt: skip


@app.command()
def compare(
    sample_json: Annotated[Path, typer.Option(**Existing)],
    cells: Annotated[list[str], typer.Option(help="`segmentation=file`: its `*.cells.parquet`. Repeatable.")],
    transcripts: Annotated[list[str], typer.Option(help="`segmentation=file`: its `transcripts.parquet` of assign. Repeatable.")],
    out: Out,
    annotations: Annotated[Optional[Path], typer.Option(**Existing, help="Annotated cells: GeoJSON, label TIFF or a table of cells.")] = None,
    annotations_unit: Annotated[Optional[Unit], typer.Option(help="Of GeoJSON. Default: px, full-resolution pixels of the mosaic.")] = None,
    working_um: Annotated[float, typer.Option(min=0.05, max=2, help="Size of a working pixel, µm: a label TIFF may have the working grid's size.")] = (
        DEFAULT_WORKING_UM
    ),
    match_iou: Annotated[float, typer.Option(min=0.01, max=1, help="IoU from which cells of two segmentations are the same.")] = 0.5,
    iou_thresholds: Annotated[str, typer.Option(help="Of the average precision, separated by `,`.")] = "0.5,0.6,0.7,0.8,0.9",
) -> None:
    """Compare all segmentations of a sample with each other and with annotated cells."""
    from istseg.stages import compare as stage

    stage.run(
        sample_json=sample_json, cells=pairs("cells", cells), transcripts=pairs("transcripts", transcripts), out=out, annotations=annotations,
        annotations_unit=annotations_unit.value if annotations_unit else None, working_um=working_um, match_iou=match_iou,
        iou_thresholds=stage.thresholds_of(iou_thresholds),
    )  # fmt: skip


@app.command()
def regions(
    tiles: Annotated[Path, typer.Option(**Existing, help="`tiles/` of the sample.")],
    nuclei: Annotated[Path, typer.Option(**Existing, help="`nuclei.parquet`.")],
    cells: Annotated[list[str], typer.Option(help="`segmentation=file`: its `*.cells.parquet`. Repeatable.")],
    counts: Annotated[Path, typer.Option(**Existing, help="`counts.h5ad` of assess of `--segmentation`.")],
    out: Out,
    segmentation: Annotated[str, typer.Option(help="Whose flags choose the regions.")] = "istseg",
    region_um: Annotated[float, typer.Option(min=20, max=500, help="Side of a region.")] = 150.0,
    gene_colours: GeneColours = None,
) -> None:
    """Draw a few regions as layers for the report's viewer."""
    from istseg.stages import regions as stage

    stage.run(
        tiles=tiles, nuclei=nuclei, cells=pairs("cells", cells), counts=counts, segmentation=segmentation, out=out, side_um=region_um, colours=gene_colours,
    )  # fmt: skip


@app.command()
def report(
    run_json: Annotated[Path, typer.Option(**Existing, help="`run.json`: samples, parameters, versions (see artifacts/run.py).")],
    results: Annotated[
        Path, typer.Option(**Existing, help="Folder below which the artifacts of all samples lie; they are known by file name and by the sample they name.")
    ],
    out: Out,
) -> None:
    """Write one self-contained HTML report over all samples."""
    from istseg.stages import report as stage

    stage.run(run_json=run_json, results=results, out=out)


@app.command()
def export(
    sample_json: Annotated[Path, typer.Option(**Existing)],
    zarr: Annotated[Path, typer.Option(**Existing, help="`<sample>.zarr` of convert.")],
    merged: Annotated[Path, typer.Option(**Existing, help="Folder of merge.")],
    assessed: Annotated[Path, typer.Option(**Existing, help="Folder of assess for the segmentation `istseg`.")],
    transcripts: Annotated[Path, typer.Option(**Existing, help="`transcripts.parquet` of assign for the segmentation `istseg`.")],
    out: Out,
    formats: Annotated[str, typer.Option(help="Separated by `,`: spatialdata, geojson, vizgen, cosmx, ometiff, explorer.")] = "spatialdata,geojson,vizgen",
) -> None:
    """Write the result in the formats of other tools."""
    from istseg.stages import export as stage

    stage.run(
        sample_json=sample_json, zarr=zarr, merged=merged, assessed=assessed, transcripts=transcripts, out=out, formats=[f for f in formats.split(",") if f]
    )
