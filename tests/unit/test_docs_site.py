"""The pages of the documentation: links lead somewhere, the site's configuration can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
FRONT = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "assets" / "models").glob("*.md"))]
OURS = re.compile(r"(?<![\w./<-])((?:src|tests|docs|assets|conf|benchmarks|bin|containers|modules|workflows)/[\w./*<{},-]+)")
WRITTEN_BY_THE_READER = {"containers/core/torch-cpu.lock"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")) if not re.match(r"[a-z]+:|#", t)]
    lost = [t for t in targets if not (page.parent / t.partition("#")[0]).exists()]
    assert not lost, lost


@pytest.mark.parametrize("page", [*FRONT, *PAGES], ids=lambda p: p.name)
def test_files_targets_and_tests_that_a_page_names_are_there(page: Path) -> None:
    """Paths of this repository with `*` and `{a,b}`, `make TARGET` in code, `test_*.py`."""
    text = page.read_text(encoding="utf-8")
    named = {path.rstrip(".,/") for path in OURS.findall(text) if "<" not in path} - WRITTEN_BY_THE_READER
    lost = [one for path in named for one in one_by_one(path) if not any(ROOT.glob(one))]
    lost += [f"make {name}" for name in re.findall(r"[`\n]make ([a-z][a-z-]+)", text) if not re.search(rf"^{name}:", MAKEFILE, re.M)]
    lost += [name for name in re.findall(r"\btest_\w+\.py", text) if not any((ROOT / "tests").rglob(name))]
    assert not lost, lost


def one_by_one(path: str) -> list[str]:
    """`a/{b,c}` as `a/b` and `a/c`."""
    found = re.search(r"\{(.+?)\}", path)
    return [path.replace(found.group(), name) for name in found.group(1).split(",")] if found else [path]


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
