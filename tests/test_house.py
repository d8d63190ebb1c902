"""The house: arrows between the rooms go one way, files can be read in a sitting, and links of the documents lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "dqmstream"
BASE = {"lumisection", "errors"}
MAY_IMPORT = {
    "storage": BASE | {"storage"},
    "streaming": BASE | {"streaming", "storage"},
    "learners": BASE | {"learners", "storage"},
    "experiments": BASE | {"experiments", "learners", "storage"},
    "service": BASE | {"config", "streaming", "learners", "storage"},
    "lumisection": set[str](),
    "errors": set[str](),
    "config": {"errors"},
    "console": set[str](),
}
"""Room or file, and what of dqmstream it may import. Above them: commands (one function a command), demo, cli."""


def room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path: Path) -> set[str]:
    """Rooms of dqmstream that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("dqmstream.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_one_way(path: Path) -> None:
    allowed = MAY_IMPORT.get(room(path))
    if allowed is not None:
        assert imported(path) - {"__version__"} <= allowed
    assert not imported(path) & {"cli"} or room(path) == "__main__"
    assert len(path.read_text().splitlines()) <= 420


def test_streaming_alone_knows_kafka_and_learners_alone_know_torch() -> None:
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        if "\nfrom kafka" in text or "\nimport kafka" in text:
            assert path.parent == ROOT / "streaming" / "kafka"
        if "import torch\n" in text or "from torch" in text:
            assert room(path) == "learners"


DOCUMENTS = [ROOT.parent / "README.md", *sorted((ROOT.parent / "docs").glob("*.md"))]


def anchors(text: str) -> set[str]:
    """Of its headings, as GitHub makes them; lines of code are none."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
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
