"""The pages of the documentation: links lead somewhere, the site's configuration can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")) if not re.match(r"[a-z]+:|#", t)]
    lost = [t for t in targets if not (page.parent / t.partition("#")[0]).exists()]
    assert not lost, lost


def test_start_page_names_every_page() -> None:
    start = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\((\w[\w-]*\.md)\)", start))
    assert named <= {p.name for p in PAGES}
    assert {"tutorial.md", "usage.md", "output.md", "exports.md", "formats.md"} <= named
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["docs_dir"] == "docs"


def test_tests_that_the_page_of_formats_names_exist() -> None:
    """`file.py::name` of docs/formats.md; `…` stands for the rest of a name."""
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    sources = {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py")}
    last, found = "", 0
    for file, name in re.findall(r"`(test_\w+\.py)?(?:::(\w+…?))?`", page):
        last = file or last
        if not last:
            continue
        assert last in sources, last
        if name:
            wanted = name.rstrip("…")
            assert re.search(rf"^def {wanted}{'' if name.endswith('…') else chr(92) + 'b'}", sources[last], re.M), f"{last}::{name}"
            found += 1
    assert found > 40
