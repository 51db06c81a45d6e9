"""The page in a real browser: it draws, sorts, switches and says nothing to the console."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import report_fixtures as made
from istseg.stages import report


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    made.write_whole(folder / "results", "a9", 0, n_cells=3000, n_umap=900, side=300)
    made.write_whole(folder / "results", "a10", 1, ("istseg", "teacher"), n_cells=900, n_umap=100, side=300)
    made.write_training(folder / "results", "a9", ["a9"])
    report.run(run_json=made.write_run(folder, ["a9", "a10", "lost"]), results=folder / "results", out=folder / "report")
    return folder / "report" / "report.html"


@pytest.fixture
def open_page(chromium, page_file):
    """Open the page; what went wrong is collected in `said`, loads of anything but the file itself too."""
    contexts = []

    def opener(scheme="light", width=1366):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.said = []
        page.on("console", lambda m: page.said.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: page.said.append(str(e)))
        page.on("request", lambda r: page.said.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
        page.goto(page_file.as_uri())
        return page

    yield opener
    for context in contexts:
        context.close()


def read_through(page):
    """Scroll from top to bottom so that every figure in sight is drawn; gives the names of all that were ever drawn."""
    drawn = set()
    height = page.evaluate("document.documentElement.scrollHeight")
    for y in range(0, height, 700):
        page.evaluate(f"scrollTo(0, {y})")
        page.wait_for_timeout(120)
        drawn |= set(page.evaluate("[...document.querySelectorAll('.plot .main-svg')].map(s => s.closest('.plot').dataset.figure)"))
    return drawn


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_every_figure_is_drawn_without_errors(open_page, scheme):
    page = open_page(scheme)
    wanted = set(page.evaluate("[...document.querySelectorAll('.plot')].filter(p => p.checkVisibility()).map(p => p.dataset.figure)"))
    assert len(wanted) > 15
    assert read_through(page) >= wanted
    assert page.said == []
    ink, paper = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor].map(c => Number(c.match(/\\d+/)[0]))")
    assert (ink < paper) == (scheme == "light")
    text = page.evaluate("getComputedStyle(document.querySelector('.plot .xtitle')).fill")
    assert (int(text.split("(")[1].split(",")[0]) < 128) == (scheme == "light")


@pytest.mark.slow
def test_300000_cells_are_read_smoothly(chromium, tmp_path):
    """All cells are in the embedding, so what is drawn must be thinned."""
    made.write_whole(tmp_path / "results", "big", 0, ("istseg",), n_cells=300_000, n_umap=300_000, side=1500)
    report.run(run_json=made.write_run(tmp_path, ["big"]), results=tmp_path / "results", out=tmp_path / "report")
    path = tmp_path / "report" / "report.html"
    assert path.stat().st_size < 12e6
    page = chromium.new_page(viewport={"width": 1366, "height": 900})
    said = []
    page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: said.append(str(e)))
    page.goto(path.as_uri())
    assert {"s0-umap-0-flag", "s0-map-0"} <= read_through(page)
    # 300 ms on a machine of its own.
    assert page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 3000
    assert page.evaluate("performance.memory.usedJSHeapSize") < 250e6
    page.evaluate("document.querySelector('[data-figure=s0-umap-0-flag]').scrollIntoView()")
    page.wait_for_function("document.querySelector('[data-figure=s0-umap-0-flag]').data?.length > 0")
    points = page.evaluate("document.querySelector('[data-figure=s0-umap-0-flag]')._fullData.reduce((n, t) => n + t.x.length, 0)")
    assert 3000 < points <= 5000
    assert said == []
    page.close()


def test_far_webgl_figures_are_released(open_page):
    page = open_page()
    page.evaluate("document.querySelector('[data-figure=s0-umap-0-flag]').scrollIntoView()")
    page.wait_for_timeout(600)
    drawn = "document.querySelector('[data-figure=s0-umap-0-flag] .main-svg') !== null"
    assert page.evaluate(drawn)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_timeout(600)
    assert not page.evaluate(drawn)


def test_the_table_sorts_by_number_and_by_name(open_page):
    page = open_page()

    def order():
        return page.evaluate("[...document.querySelectorAll('.cohort tbody th')].map(c => c.textContent)")

    assert order() == ["a9", "a10", "lost"]
    page.get_by_role("button", name="Cells", exact=True).click()
    assert order() == ["a10", "a9", "lost"]
    page.get_by_role("button", name="Cells", exact=True).press("Enter")
    assert order() == ["a9", "a10", "lost"]
    assert page.evaluate("document.querySelectorAll('.cohort [aria-sort=descending]').length") == 1
    page.get_by_role("button", name="Sample", exact=True).click()
    page.get_by_role("button", name="Sample", exact=True).click()
    assert order() == ["lost", "a10", "a9"]
    page.get_by_role("button", name="Verdict", exact=True).click()
    assert order()[-1] == "lost"


def test_tabs_pictures_and_sections(open_page):
    page = open_page()
    for name in ("summary", "samples", "s0", "s1", "s2", "training", "methods", "parameters", "versions", "resources", "checks"):
        assert page.locator(f"#{name}").count() == 1
    first = page.locator("#s0 .overviews [role=tab]")
    assert first.all_text_contents() == ["istseg", "teacher", "vendor"]
    panels = page.locator("#s0 .overviews [role=tabpanel]:visible")
    assert panels.count() == 1
    first.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert first.nth(1).get_attribute("aria-selected") == "true"
    assert panels.get_attribute("data-tab") == "teacher"
    page.locator("#s0 .gallery .zoom").first.press("Enter")
    assert page.locator("#lightbox img").get_attribute("src").startswith("data:image/webp")
    page.keyboard.press("Escape")
    assert not page.locator("#lightbox").is_visible()
    assert page.locator("#s2").get_by_text("stopped at").is_visible()
    assert page.said == []


def test_the_table_is_filtered_and_saved_as_it_is_shown(open_page):
    page = open_page()
    page.get_by_role("button", name="Cells", exact=True).click()
    page.get_by_role("searchbox").first.fill("a10")
    assert page.locator(".cohort tbody tr:visible").count() == 1
    page.get_by_role("searchbox").first.fill("cosmx")
    page.get_by_role("searchbox").first.fill("")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download CSV").first.click()
    table = pd.read_csv(saved.value.path())
    assert saved.value.suggested_filename == "samples.csv"
    report = json.loads((Path(page.url.removeprefix("file://")).parent / "report.json").read_text())
    entries = {s["sample"]: s for s in report["samples"]}
    assert table["Sample"].tolist() == ["a10", "a9", "lost"]
    for _, row in table[table["Sample"] != "lost"].iterrows():
        entry = entries[row["Sample"]]
        assert row["Verdict"] == entry["verdict"]
        assert row["Cells"] == entry["segmentations"]["istseg"]["n_cells"]
        assert row["Spurious"] == pytest.approx(entry["segmentations"]["istseg"]["flags"]["spurious_rate"])
    assert table.iloc[-1][["Cells", "Spurious"]].isna().all()
    assert page.said == []


def test_a_figure_is_saved_as_svg(open_page):
    page = open_page()
    plot = page.locator("[data-figure=s0-flags]")
    plot.scroll_into_view_if_needed()
    plot.hover()
    with page.expect_download() as saved:
        plot.locator("[data-title='Download plot as SVG']").click()
    assert saved.value.suggested_filename == "s0-flags.svg"
    assert Path(saved.value.path()).read_text().startswith("<svg")
    assert page.said == []


def test_layers_and_outlines_of_a_region_are_switched(open_page):
    page = open_page()
    page.locator("#s0 .layer-switches").first.scroll_into_view_if_needed()
    plot = page.locator("#s0 .layered").first
    plot.locator(".imagelayer image").first.wait_for()
    shown = "[...document.querySelector('#s0 .layered').querySelectorAll('.imagelayer image')].length"
    boxes = page.locator("#s0 .layer-switches").first.get_by_role("checkbox")
    assert [boxes.nth(k).is_checked() for k in range(boxes.count())] == [True, True, False]
    assert page.evaluate(shown) == 2
    assert page.evaluate("getComputedStyle(document.querySelector('#s0 .layered image')).mixBlendMode") == "screen"
    page.get_by_label("RNA").first.check()
    page.wait_for_function(f"{shown} === 3")
    boxes.first.press("Space")
    page.wait_for_function(f"{shown} === 2")
    # A new drawing, here for another theme, keeps what was switched.
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(400)
    assert page.evaluate(shown) == 2
    names = plot.locator(".legend .legendtext").all_text_contents()
    assert names[0] == "nuclei"
    assert "teacher" in names
    assert any(name.startswith("istseg: ") for name in names)
    lines = "document.querySelectorAll('#s0 .layered .scatterlayer path.js-line').length"
    before = page.evaluate(lines)
    plot.locator(".legend .traces", has_text="vendor").locator(".legendtoggle").click()
    page.wait_for_function(f"{lines} > {before}")
    assert page.said == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1366])
def test_the_page_never_scrolls_sideways(open_page, width):
    page = open_page(width=width)
    read_through(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_pictures_and_axes_keep_their_room_on_a_narrow_page(open_page):
    page = open_page(width=390)
    page.locator("#s0 .layered").first.scroll_into_view_if_needed()
    page.locator("#s0 .layered .imagelayer image").first.wait_for()
    assert page.evaluate("document.querySelector('#s0 .layered')._fullLayout.xaxis._length") > 200
    several = "[...document.querySelectorAll('.plot')].find((p) => getComputedStyle(p).getPropertyValue('--panels') > 3)"
    page.evaluate(f"{several}.scrollIntoView()")
    page.wait_for_function(f"{several}._fullLayout")
    assert page.evaluate(f"{several}._fullLayout.xaxis2._length") > 60
    assert page.evaluate(f"{several}.parentElement.scrollWidth > {several}.parentElement.clientWidth")


@pytest.mark.slow
def test_print_draws_all_figures_on_paper(open_page, tmp_path):
    page = open_page("dark")
    page.evaluate("""addEventListener("beforeprint", () => {
        window.seen = document.querySelectorAll(".plot:has(.main-svg)").length;
        window.gl = document.querySelectorAll(".plot canvas").length;
        window.picture = document.querySelector("#s0 .layered")._fullLayout.xaxis._length;
        window.wide = Math.max(...[...document.querySelectorAll(".plot .main-svg")].map((s) => s.clientWidth));
    })""")
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    wanted = page.evaluate("new Set([...document.querySelectorAll('.plot')].filter(p => p.checkVisibility()).map(p => p.dataset.figure)).size")
    page.wait_for_timeout(300)
    assert page.evaluate("window.gl") == 0
    assert page.evaluate("window.seen") >= wanted > 15
    assert page.evaluate("window.wide") <= 690
    assert page.evaluate("window.picture") > 450
    assert (tmp_path / "report.pdf").stat().st_size > 100_000
    assert page.said == []
