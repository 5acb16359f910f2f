"""Generated references are current, and what the docs link to and name exists."""

import re
from pathlib import Path

import pytest

from tools.docs import pages

DOCS = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").rglob("*.md"))]


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_a_generated_reference_is_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == pages()[path], "stale: run `make docs`"


@pytest.mark.parametrize("page", DOCS, ids=str)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", DOCS, ids=str)
def test_make_targets_named_in_docs_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", Path("Makefile").read_text(), flags=re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|\$ )make ([a-z]+)", text))
    assert named <= targets, f"{page}: {named - targets}"
