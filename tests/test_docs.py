"""What the documents name is there, and every page can be found."""

from __future__ import annotations

import re
import shlex
import tokenize
from pathlib import Path

import pytest

from proxy import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
README_LINES = 110


def links(page: Path) -> list[tuple[Path, str]]:
    """The files and headings of this repository that a page links to."""
    found = [link for link in re.findall(r"\]\(([^)\s]+)", page.read_text()) if "://" not in link]
    return [
        (page.parent / file if file else page, anchor) for file, _, anchor in (link.partition("#") for link in found)
    ]


def anchors(page: Path) -> set[str]:
    """The names that forges give to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.M)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


@each_page
def test_every_link_and_every_test_that_a_page_names_is_there(page: Path) -> None:
    assert [str(file) for file, _ in links(page) if not file.exists()] == []
    assert [f"{file}#{anchor}" for file, anchor in links(page) if anchor and anchor not in anchors(file)] == []
    named = re.findall(r"`((?:tests/)?[\w/]+\.py)::(\w+)`", page.read_text())
    missing = [f"{file}::{name}" for file, name in named if not has(ROOT / "tests" / file.removeprefix("tests/"), name)]
    assert missing == []


def has(file: Path, name: str) -> bool:
    return file.exists() and f"def {name}(" in file.read_text()


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop().resolve()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            left += [file for file, _ in links(page)]
    assert [str(page) for page in PAGES if page.resolve() not in reached] == []


def test_the_index_names_every_page_but_single_decisions() -> None:
    named = {file.resolve() for file, _ in links(DOCS / "README.md")}
    pages = [page for page in DOCS.rglob("*.md") if page != DOCS / "README.md" and not page.name[0].isdigit()]
    assert [str(page.relative_to(DOCS)) for page in pages if page.resolve() not in named] == []


def test_the_readme_is_short_and_shows_a_turn() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES
    assert len(blocks(ROOT / "README.md", "mermaid")) == 1


def test_the_index_of_decisions_has_a_row_for_each_page_and_no_other() -> None:
    pages = [page for page in sorted((DOCS / "decisions").glob("*.md")) if page.name != "README.md"]
    titles = [page.read_text().splitlines()[0].removeprefix("# ").partition(". ") for page in pages]
    rows = [f"| {number} | [{title}]({page.name}) |" for page, (number, _, title) in zip(pages, titles, strict=True)]
    index = (DOCS / "decisions" / "README.md").read_text().splitlines()
    assert [line for line in index if re.match(r"\| \d", line)] == rows
    assert [int(page.name[:4]) for page in pages] == [int(number) for number, _, _ in titles]


@each_page
def test_every_command_that_a_page_shows_is_one(page: Path) -> None:
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line in "".join(blocks(page, "sh")).replace("\\\n", "").splitlines():
        for command in re.split(r"&&|\|", line.partition(" #")[0]):
            words = shlex.split(command)
            while words and (words[0] in ("sudo", "nice") or re.fullmatch(r"[A-Z_]+=.*", words[0])):
                words.pop(0)
            if words[:1] == ["make"]:
                assert [word for word in words[1:] if word not in targets and "=" not in word] == [], command
            if words[:1] == ["session-proxy"]:
                arguments = words[1 : words.index(">") if ">" in words else None]
                assert cli._parser().parse_args(arguments), command


def test_no_page_names_a_target_of_make_that_is_not_there() -> None:
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {target for page in PAGES for target in re.findall(r"`make ([a-z]\w*)", page.read_text())}
    assert named and named <= targets


@each_page
def test_no_line_of_prose_is_longer_than_120_characters(page: Path) -> None:
    text = re.sub(r"^```.*?^```|^\|.*?$", "", page.read_text(), flags=re.M | re.S)
    assert [line for line in text.splitlines() if len(line) > 120] == []


def test_every_path_and_name_in_the_recipes_is_in_the_code() -> None:
    recipes = (ROOT / "CONTRIBUTING.md").read_text().partition("## Recipes")[2].partition("\n## ")[0]
    steps = re.split(r"^\d\. |\n\n", recipes, flags=re.M)
    assert len(steps) > 20
    for step in steps:
        spans = [span for span in re.findall(r"`([^`]+)`", step) if "NAME" not in span]
        files = [ROOT / span.partition("::")[0] for span in spans if "/" in span or span == "setup.cfg"]
        assert [str(file) for file in files if not file.exists()] == []
        names = [
            name for span in spans if span != "setup.cfg" for name in re.findall(r"^(?:\w+\.)?([A-Za-z_]\w+)$", span)
        ]
        said = "".join([file.read_text() for file in files if file.is_file()])
        assert [name for name in names if files and not re.search(rf"\b{name}\b", said)] == [], step


# The glossary


def words() -> list[tuple[str, str, list[str]]]:
    """Each word with its meaning, and the names that it has in the code today."""
    found = re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \| ?(.*?) ?\|$", (DOCS / "glossary.md").read_text(), re.M)
    return [(word, meaning, re.findall(r"`([^`]+)`", names)) for word, meaning, names in found]


def test_the_glossary_has_each_word_once_and_in_order() -> None:
    known = [word.lower() for word, *_ in words()]
    assert len(known) > 40 and known == sorted(set(known))


def test_every_name_that_the_glossary_calls_another_one_is_still_in_the_code() -> None:
    files = list((ROOT / "proxy").rglob("*.py"))
    modules = {file.relative_to(ROOT / "proxy").as_posix() for file in files}
    used: set[str] = {file.stem for file in files}
    for file in files:
        with file.open("rb") as source:
            used.update([token.string for token in tokenize.tokenize(source.readline) if token.type == tokenize.NAME])
    gone = {name for *_, names in words() for name in names} - modules - used
    assert gone == set(), "renamed: take them off the glossary"
