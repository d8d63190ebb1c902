"""What README and docs/ name is there: links lead somewhere, commands and their options are those of the command line."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from dqmstream.cli.main import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^```.*?\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
STANDS_FOR_ANY = re.compile(r"[A-Z_]+")
"""A word in capitals, as NAME, is the reader's to fill in."""

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""click's, or that of the copy of click which newer versions of typer bring."""

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def anchors(text: str) -> set[str]:
    """Of its headings, as GitHub makes them; lines of code are none."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_of_the_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    relative = [link for link in links if not link.startswith("https://")]
    for link in relative:
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), f"{document.name}: {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{document.name}: {link}"


def test_anchors_are_those_of_headings_outside_code() -> None:
    assert anchors("# What `make` did\n```sh\n# a comment\n```\n## A, b\n") == {"what-make-did", "a-b"}


def lines_of_code(text: str) -> list[str]:
    """Of its blocks, continued lines as one."""
    return [line.strip() for block in CODE.findall(text) for line in block.replace("\\\n", " ").splitlines()]


def spans(text: str) -> list[str]:
    """What stands between backticks in the prose."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", CODE.sub("", text))]


def commands(text: str, program: str) -> list[str]:
    return [line for line in (*lines_of_code(text), *spans(text)) if line.startswith(f"{program} ")]


def walk(command: Any) -> Iterator[Any]:
    """A command of typer and all that are below it."""
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from walk(inner)


def wrong_with(line: str, *, whole: bool) -> str:
    """What the command line would say of a command, without doing it; nothing where it is right.

    whole: a line to copy, which must have all that is required; in prose and beside `...` some may be left out.
    """
    words = shlex.split(line, comments=True)[1:]
    whole = whole and "..." not in words
    # In a synopsis, as [FILE ...] and show KEY | --all, only the first form is looked at.
    words = [word.strip("[]") for word in itertools.takewhile(lambda word: word != "|", words)]
    words = ["1" if STANDS_FOR_ANY.fullmatch(word) else word for word in words if word != "..."]
    words = [one for word in words for one in [word] * (1 + ("*" in word))]  # a shell finds more than one file
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in command.commands:
            return f"no such command: {name}"
        command = command.commands[name]
    if hasattr(command, "commands"):
        return ""
    try:
        command.make_context(command.name, words)
    except UsageError as error:
        missing = type(error).__name__ == "MissingParameter"
        return "" if missing and not whole else str(error)
    return ""


@each_document
def test_commands_of_the_documents_are_those_of_the_command_line(document: Path) -> None:
    text = document.read_text()
    to_copy = set(lines_of_code(text))
    said = {line: wrong_with(line, whole=line in to_copy) for line in commands(text, "dqmstream")}
    assert not {line: wrong for line, wrong in said.items() if wrong}


def test_a_command_that_is_not_there_is_found() -> None:
    assert not wrong_with("dqmstream learn --archive A  # as it should be", whole=True)
    assert not wrong_with("dqmstream simulate OUT --seed S --stream NAME", whole=True)
    assert "no such command" in wrong_with("dqmstream lern --archive A", whole=False)
    assert "--archiv" in wrong_with("dqmstream learn --archiv A", whole=False)
    assert "requires an argument" in wrong_with("dqmstream learn --archive", whole=False)
    assert "integer" in wrong_with("dqmstream simulate sim --runs seven", whole=False)
    assert "unexpected extra argument" in wrong_with("dqmstream archive verify more --archive A", whole=False)
    assert not wrong_with("dqmstream simulate", whole=False)
    assert wrong_with("dqmstream simulate", whole=True)


def options() -> set[str]:
    """All of `dqmstream`, of benchmarks and tools."""
    known = {name for command in walk(typer.main.get_command(app)) for parameter in command.params for name in parameter.opts}
    scripts = [path.read_text() for folder in ("benchmarks", "tools") for path in (ROOT / folder).glob("*.py")]
    return known | {"--help"} | {name for text in scripts for name in re.findall(r'"(--[a-z-]+)"', text)}


@each_document
def test_options_that_the_documents_name_are_there(document: Path) -> None:
    named = {
        name for span in spans(document.read_text()) for name in re.findall(r"(?<!\S)--[a-z-]+", span) if "pytest" not in span
    }
    assert named <= options()


@each_document
def test_modules_and_targets_that_the_documents_name_are_there(document: Path) -> None:
    text = document.read_text()
    for line in commands(text, "python -m"):
        name, *words = shlex.split(line, comments=True)[2:]
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, line
        source = Path(spec.origin).read_text()
        assert all(f'"{word}"' in source for word in words if word.startswith("--")), line
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {shlex.split(line, comments=True)[1] for line in commands(text, "make")} <= targets


def test_tests_that_the_readme_names_are_there() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| **")]
    named = [name for row in rows for name in re.findall(r"`((?:[a-z_]+/)*test_[a-z_]+)`", row.split(" | ")[1])]
    assert len(rows) >= 15 and len(named) >= len(rows)
    for name in named:
        folder = ROOT / "tests" / ("" if "/" in name else "promises")
        assert (folder / f"{name}.py").exists(), name
