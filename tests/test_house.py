"""The house: arrows between the rooms go one way, and files can be read in a sitting."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "dqmstream"
BASE = {"lumisection", "errors"}
MAY_IMPORT = {
    "storage": BASE | {"storage"},
    "streaming": BASE | {"streaming", "storage"},
    "learners": BASE | {"learners", "libraries", "storage"},
    "experiments": BASE | {"experiments", "learners", "storage"},
    "service": BASE | {"config", "learner_process", "stopping", "streaming", "learners", "storage"},
    "learner_process": BASE | {"config", "learners", "storage"},
    "stopping": set[str](),
    "libraries": set[str](),
    "lumisection": set[str](),
    "errors": set[str](),
    "config": BASE,
    "console": {"lumisection", "terminal"},
    "terminal": {"errors"},
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
