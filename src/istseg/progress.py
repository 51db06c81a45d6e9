"""Progress of long work: a bar on a terminal, plain lines in logs. Library code reports here and never prints."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_LINE_EVERY_S = 10.0

log = logging.getLogger("istseg")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items; show how far it is."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(items, description=what, total=total, console=Console(stderr=True))
        return
    last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last > _LINE_EVERY_S:
            last = time.monotonic()
            log.info("%s: %d of %s", what, done, "?" if total is None else total)
