"""Make the pictures of the README and of docs/output.md from the report of the simulated cohort (`benchmarks/cohort.py`), in Chromium.

The cohort comes first; this takes seconds.

    python benchmarks/pictures.py --results results/cohort
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from browser import WIDTH, chromium
from nextflow_run import ROOT
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

SETTLE_MS = 1500
"""Figures are drawn when they come into sight."""
SHORT = """(folder) => document.querySelectorAll("section.sample code").forEach((code) => { code.textContent = code.textContent.replace(folder, "/data"); })"""
"""Where the results lie on the machine that made the pictures tells a reader nothing."""


def opened(browser: Browser, report: Path, scheme: str, height: int) -> Page:
    """The report in a window of this height, px."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme, reduced_motion="reduce")
    page.goto(report.resolve().as_uri())
    page.evaluate(SHORT, str(report.resolve().parent))
    return page


def screen(page: Page, place: Locator) -> bytes:
    """What is seen with a place at the top."""
    place.evaluate("(element) => element.scrollIntoView()")
    page.wait_for_timeout(SETTLE_MS)
    return page.screenshot()


def sample(page: Page, name: str) -> Locator:
    """The section of a sample."""
    return page.locator("section.sample").filter(has=page.locator("h2", has_text=name))


def close_look(page: Page, name: str) -> bytes:
    """The first close look of a sample, with its transcripts."""
    card = sample(page, name).locator("figure", has=page.locator(".layered")).first
    card.scroll_into_view_if_needed()
    card.get_by_role("checkbox", name="RNA").check()
    page.wait_for_timeout(SETTLE_MS)
    return card.screenshot()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "cohort")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    report = options.results / "report.html"
    with chromium() as browser:
        light, dark, low = (opened(browser, report, scheme, height) for scheme, height in (("light", 1110), ("dark", 1100), ("light", 560)))
        pictures = {
            "report_cohort": screen(light, light.locator("#summary")),
            "report_sample_dark": screen(dark, sample(dark, "autofluorescent")),
            "report_costs": screen(low, low.locator("#resources")),
            "close_look": close_look(dark, "control_1"),
        }
    for name, png in pictures.items():
        path = options.out / f"{name}.webp"
        Image.open(io.BytesIO(png)).convert("RGB").save(path, quality=82)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
