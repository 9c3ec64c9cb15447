"""The diagrams and tables of docs/architecture.md show the modules that there are, and the imports between them."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import PAGES, ROOT, blocks

PACKAGE = ROOT / "proxy"
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
DIAGRAMS = [(page, text) for page in PAGES for text in blocks(page, "mermaid")]


def boxes() -> dict[str, list[str]]:
    """The boxes of the first diagram, and the files and folders in each."""
    drawn = re.findall(r'^ *(\w+)\["([^"<]+)<br>[^"]*"\]$', blocks(PAGE, "mermaid")[0], re.M)
    return {box: names.split() for box, names in drawn}


def arrows() -> set[tuple[str, str]]:
    chains = [re.split(r" --> ", line.strip()) for line in blocks(PAGE, "mermaid")[0].splitlines() if " --> " in line]
    return {pair for chain in chains for pair in itertools.pairwise(chain)}


def box_of(module: Path) -> str:
    top = module.relative_to(PACKAGE).parts[0]
    (box,) = [box for box, names in boxes().items() if {top, f"{top}/"} & set(names)]
    return box


def imported(module: Path) -> Iterator[Path]:
    """The modules of ours that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "proxy":
            for name in node.names:
                path = PACKAGE.joinpath(*node.module.split(".")[1:])
                for file in ((path / name.name).with_suffix(".py"), path.with_suffix(".py")):
                    if file.is_file():
                        yield file
                        break


def reaches(arrows: set[tuple[str, str]], box: str) -> set[str]:
    found = {end for start, end in arrows if start == box}
    return found.union(*[reaches(arrows, each) for each in found])


def test_every_module_is_in_one_box_and_every_box_holds_what_there_is() -> None:
    names = [name for names in boxes().values() for name in names]
    there = [f"{folder}/" for folder in FOLDERS] + [
        file.name for file in PACKAGE.glob("*.py") if file.name != "__init__.py"
    ]
    assert sorted(names) == sorted(there)


def test_every_arrow_is_an_import_and_every_import_goes_along_the_arrows() -> None:
    modules = [file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py"]
    edges = {
        (box_of(file), box_of(other))
        for file in modules
        for other in imported(file)
        if other != PACKAGE / "__init__.py"
    }
    edges = {(start, end) for start, end in edges if start != end}
    assert arrows() <= edges
    assert [(start, end) for start, end in edges if end not in reaches(arrows(), start)] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_of_a_folder_is_named_once_below_it(folder: str) -> None:
    section = re.split(r"^#", PAGE.read_text().partition(f"\n### {folder}/\n")[2], maxsplit=1, flags=re.M)[0]
    modules = [file.stem for file in (PACKAGE / folder).rglob("[a-z]*.py")]
    assert sorted(re.findall(r"`([a-z_]+)`", section)) == sorted(modules)


@pytest.mark.parametrize(("page", "text"), DIAGRAMS)
def test_every_module_that_a_diagram_names_is_there(page: Path, text: str) -> None:
    named = re.findall(r"\b[a-z]+(?:/\w+)+\.py", text)
    assert [name for name in named if not (PACKAGE / name).is_file()] == []


@pytest.mark.parametrize(("page", "text"), DIAGRAMS)
def test_every_arrow_of_a_diagram_joins_what_it_has_named(page: Path, text: str) -> None:
    if text.startswith("flowchart"):
        assert {box for pair in arrows() for box in pair} == set(boxes())
        return
    assert text.startswith("sequenceDiagram\n"), "a kind of diagram that no test knows"
    lines = [line.strip() for line in text.splitlines()[1:]]
    actors = {line.split()[1] for line in lines if line.startswith("participant ")}
    messages = [re.fullmatch(r"(\w+)--?>>(\w+): [^;#]+", line) for line in lines if ">>" in line]
    assert all(messages) and {name for found in messages if found for name in found.groups()} == actors
    opened = [line for line in lines if line.startswith(("loop ", "alt "))]
    assert len(opened) == lines.count("end")
