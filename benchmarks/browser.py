"""Open a report in headless Chromium as a reader would: what it weighs, when it first paints, what it says to the console; screenshots."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ARGUMENTS = [
    f"--{a}"
    for a in (
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "enable-precise-memory-info",
    )
]
WIDTH, HEIGHT = 1366, 900
LONG_TASKS = """
window.tasks = [];
new PerformanceObserver((list) => list.getEntries().forEach((e) => window.tasks.push(e.duration))).observe({ type: "longtask", buffered: true });
"""


@dataclass
class Seen:
    """Bytes of the file; ms until the first contentful paint; ms from the start until it can be used; JavaScript memory after reading it through; ms of the
    longest step when scrolling; errors and requests.
    """

    size: int
    paint_ms: float = 0.0
    ready_ms: float = 0.0
    heap_bytes: int = 0
    slowest_ms: float = 0.0
    figures: int = 0
    said: list[str] = field(default_factory=list)

    def table(self) -> str:
        """One row for people."""
        columns = {
            "size, MB": f"{self.size / 1e6:.1f}",
            "first paint, ms": f"{self.paint_ms:.0f}",
            "ready, ms": f"{self.ready_ms:.0f}",
            "figures": str(self.figures),
            "longest task while scrolling, ms": f"{self.slowest_ms:.0f}",
            "JavaScript memory, MB": f"{self.heap_bytes / 1e6:.0f}",
            "console": "; ".join(self.said) or "nothing",
        }
        return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), columns.values()))


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser without a window; the program ends with a word where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program:
        sys.exit("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


def look(report: Path, pictures: Path | None = None, schemes: tuple[str, ...] = ("light", "dark")) -> Seen:
    """Read a report from top to bottom in each colour scheme; figures are those of the first.

    Parameters
    ----------
    pictures
        Folder for a picture of every screen, `<scheme>/<n>.png`.
    """
    seen = Seen(report.stat().st_size)
    with chromium() as browser:
        for number, scheme in enumerate(schemes):
            context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme, reduced_motion="reduce")
            page = context.new_page()
            page.on("console", lambda m: seen.said.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda e: seen.said.append(str(e)))
            page.on("request", lambda r: seen.said.append(f"asked for {r.url[:80]}") if not r.url.startswith(("file:", "data:", "blob:")) else None)
            page.add_init_script(LONG_TASKS)
            page.goto(report.resolve().as_uri())
            page.wait_for_timeout(500)
            if not number:
                seen.paint_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
                seen.ready_ms = page.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart")
                page.evaluate("window.tasks.length = 0")
            drawn = _read(page, pictures and pictures / scheme)
            if not number:
                seen.figures = drawn
                seen.slowest_ms = page.evaluate("Math.max(0, ...window.tasks)")
                seen.heap_bytes = page.evaluate("performance.memory.usedJSHeapSize")
            context.close()
    return seen


def _read(page: Page, pictures: Path | None) -> int:
    """Scroll through; gives the number of figures that were drawn."""
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    drawn: set[str] = set()
    height = page.evaluate("document.documentElement.scrollHeight")
    for n, y in enumerate(range(0, height, HEIGHT - 100)):
        page.evaluate(f"scrollTo(0, {y})")
        page.wait_for_timeout(700 if pictures else 250)
        drawn |= set(page.evaluate("[...document.querySelectorAll('.plot .main-svg')].map((s) => s.closest('.plot').dataset.figure)"))
        if pictures:
            page.screenshot(path=pictures / f"{n:02d}.png")
    return len(drawn)
