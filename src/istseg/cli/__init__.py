"""The command line: parses, imports the stage when it is called, runs it. No logic lives here.

Stage modules are imported inside the commands because torch and spatialdata take seconds to load.
"""

from __future__ import annotations

import errno
import logging
import sys
from typing import Annotated, Optional

import typer

from istseg import __version__
from istseg.artifacts.files import final
from istseg.cli import comparators, helpers, road, tools  # noqa: F401  They enter their commands into the applications.
from istseg.cli.options import app, comparator_app
from istseg.errors import EXIT_BAD_INPUT, EXIT_OUT_OF_MEMORY, InputError, IstsegError

__all__ = ["app", "comparator_app", "main"]

_FORBIDDEN = "Check the permissions, or give another path."
_A_FILE = "A file lies where a folder must be: move it away, or give another path."
_ADVICE = {errno.EEXIST: _A_FILE, errno.ENOTDIR: _A_FILE, errno.EACCES: _FORBIDDEN, errno.EPERM: _FORBIDDEN, errno.EROFS: _FORBIDDEN}


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and end.")] = False,
    expect_version: Annotated[Optional[str], typer.Option(hidden=True, help="Fail when this is not the version.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Warnings and errors only.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("cellpose", "fontTools", "matplotlib", "numba", "ome_zarr", "dask"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if expect_version and expect_version != __version__:
        raise IstsegError(
            f"this is istseg {__version__} but the pipeline is {expect_version}: the container or environment does not belong to this pipeline. "
            "Update the image or the environment."
        )


def main() -> None:
    """Run the command line; errors for the user are printed without a traceback."""
    try:
        app()
    except InputError as error:
        for problem in error.problems:
            typer.echo(f"ERROR: {problem}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except IstsegError as error:
        typer.echo(f"ERROR: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        typer.echo(f"ERROR: {_told(error)}", err=True)
        sys.exit(1)
    except MemoryError as error:
        typer.echo(f"ERROR: the memory is not enough ({error or 'Python'}); give the task more.", err=True)
        sys.exit(EXIT_OUT_OF_MEMORY)
    except RuntimeError as error:
        # Of torch, which is not imported here: most commands do without.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        typer.echo(f"ERROR: the memory of the GPU is not enough ({error}); lower the batch size, or give the task a GPU of its own.", err=True)
        sys.exit(EXIT_OUT_OF_MEMORY)


def _told(error: OSError) -> str:
    """What, where, what to do; a file that is being written has the name that it will get."""
    if not error.filename:
        return f"files: {error.strerror or error}."
    return f"{final(str(error.filename))}: {error.strerror or error}. {_ADVICE.get(error.errno, 'Check the path, or give another one.')}"
