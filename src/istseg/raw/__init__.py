"""Raw folders of the instruments: one reader for each platform behind `RawSample`.

A new platform is one module with a subclass of `RawSample` and one line in `READERS`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from istseg.errors import InputError
from istseg.raw.base import Options, RawSample

READERS = {
    "merscope": "istseg.raw.merscope:MerscopeSample",
    "cosmx": "istseg.raw.cosmx:CosmxSample",
    "xenium": "istseg.raw.xenium:XeniumSample",
}
"""Platform → `module:class`. Imported when it is asked for."""


def open_raw(platform: str, root: str | Path, options: Options | None = None) -> RawSample:
    """Give the reader of a raw folder; nothing is read before `inspect`.

    Raises
    ------
    InputError
        If the platform is not known.
    """
    return reader_class(platform)(Path(root), options or Options())


def reader_class(platform: str) -> type[RawSample]:
    """The class of a platform.

    Raises
    ------
    InputError
        If the platform is not known.
    """
    if platform not in READERS:
        raise InputError(f"platform {platform!r} is not known; known are {', '.join(READERS)}.")
    module, name = READERS[platform].split(":")
    return getattr(import_module(module), name)
