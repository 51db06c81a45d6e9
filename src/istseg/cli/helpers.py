"""Commands for people: samplesheet, subset, explain, view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from istseg.cli.options import Existing, Out, Platform, app


@app.command()
def samplesheet(
    folder: Annotated[Path, typer.Argument(**Existing, help="Folder below which the runs lie.")],
    out: Annotated[Path, typer.Option("--out", help="Samplesheet to write; must not exist.")] = Path("samplesheet.csv"),
) -> None:
    """Find raw folders and write the samplesheet."""
    from istseg.helpers import sheet

    sheet.run(folder=folder, out=out)


@app.command()
def subset(
    raw: Annotated[Path, typer.Option(**Existing, help="Raw folder.")],
    platform: Annotated[Platform, typer.Option()],
    out: Out,
    region: Annotated[Optional[str], typer.Option(help="MERSCOPE, Xenium: `x0,y0,x1,y1` in µm.")] = None,
    fovs: Annotated[Optional[str], typer.Option(help="CosMx: fields of view, e.g. `1-4;7`.")] = None,
) -> None:
    """Cut a part of a raw folder, in the vendor's own form, for a quick try."""
    from istseg.helpers import subset as helper

    helper.run(raw=raw, platform=platform.value, out=out, region=region, fovs=fovs)


def _names(incomplete: str) -> list[str]:
    """For the shell's completion: what `explain` knows."""
    from istseg.helpers.explain import entries

    return [name for name in entries(None) if name.startswith(incomplete)]


# A name is often pasted with the dashes of a parameter.
@app.command(context_settings={"ignore_unknown_options": True})
def explain(
    name: Annotated[
        str, typer.Argument(help="Parameter, column of the samplesheet or of the cells, check of the report or flag of a cell.", autocompletion=_names)
    ],
    root: Annotated[Optional[Path], typer.Option(help="Folder of the pipeline, for its parameters. Default: where this program's source lies.")] = None,
) -> None:
    """Say what a name means and what to do."""
    from istseg.helpers import explain as helper

    typer.echo(helper.run(name=name, root=root))


@app.command()
def view(
    folder: Annotated[Path, typer.Argument(**Existing, help="Results of a sample, or a .zarr of SpatialData.")],
    python: Annotated[Optional[Path], typer.Option(envvar="ISTSEG_NAPARI", help="Python of an environment with napari. Default: ours.")] = None,
    picture: Annotated[Optional[Path], typer.Option(help="PNG of the window to write, without waiting for it to be closed.")] = None,
) -> None:
    """Open a result in napari (to be installed by you)."""
    from istseg.helpers import view as helper

    helper.run(folder=folder, python=python, picture=picture)
