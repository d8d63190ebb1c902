"""The house: arrows between the rooms go one way (docs/architecture.md), and files can be read in a sitting."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "dqmstream"
BASE = {"lumisection", "errors", "plugins"}

_CORE = BASE | {"learners"}
_RESPONSE = _CORE | {"learners.response"}
_MEMORY = _CORE | {"learners.memory"}
_NETWORKS = _RESPONSE | _MEMORY | {"learners.networks"}
_CLOSED_FORM = _RESPONSE | _MEMORY | {"learners.registry", "learners.closed_form"}
_GRADIENT = _NETWORKS | _CLOSED_FORM | {"learners.gradient", "libraries"}
_MONITORING = _NETWORKS | {"learners.closed_form", "learners.monitoring"}
_EVALUATION = _MEMORY | {"learners.evaluation", "storage"}
_LABELS = _GRADIENT | _MONITORING | _EVALUATION | {"learners.labels"}
_STREAM = _RESPONSE | {
    "learners.labels", "learners.registry", "learners.monitoring", "learners.evaluation", "learners.stream", "storage"
}  # fmt: skip
_EVERY_LEARNER = _GRADIENT | _MONITORING | _LABELS | _STREAM
_EXPERIMENTS = BASE | _EVERY_LEARNER | {"experiments", "storage"}

MAY_IMPORT = {
    "errors": set[str](),
    "libraries": set[str](),
    "lumisection": set[str](),
    "plugins": {"errors"},
    "settings": BASE,
    "storage": BASE | {"storage"},
    "streaming": BASE | {"streaming", "storage"},
    "learners": _RESPONSE,
    "learners.response": _RESPONSE,
    "learners.memory": _MEMORY,
    "learners.checks": _CORE | {"learners.checks"},
    "learners.networks": _NETWORKS,
    "learners.registry": _CORE | {"learners.networks"},
    "learners.closed_form": _CLOSED_FORM,
    "learners.gradient": _GRADIENT,
    "learners.monitoring": _MONITORING,
    "learners.evaluation": _EVALUATION,
    "learners.labels": _LABELS,
    "learners.stream": _STREAM,
    "experiments": _EXPERIMENTS,
    "service": BASE | {"settings", "service", "streaming", "storage"} | _EVERY_LEARNER,
    "cli": BASE | {"cli", "settings", "service", "streaming", "libraries"} | _EXPERIMENTS,
}
"""Room, and the rooms that it may import. Files beside the rooms of `learners`, except the registry, count as `learners`."""


def room_of(module: str) -> str:
    """Of `dqmstream.learners.memory.merging`: learners.memory; of `dqmstream.storage.archive`: storage."""
    parts = module.split(".")[1:]
    if parts[:1] == ["learners"] and len(parts) > 1 and (parts[1] == "registry" or (ROOT / "learners" / parts[1]).is_dir()):
        return ".".join(parts[:2])
    return parts[0] if parts else ""


def imported(path: Path) -> set[str]:
    """Modules of dqmstream that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name for name in names if name.startswith("dqmstream.") and name != "dqmstream.__version__"}
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_one_way(path: Path) -> None:
    room = room_of(module_of(path))
    rooms = {room_of(name) for name in imported(path)}
    if room in ("", "__main__"):
        return
    assert rooms <= MAY_IMPORT[room], f"{module_of(path)} imports {sorted(rooms - MAY_IMPORT[room])}"


def test_files_can_be_read_in_a_sitting() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: lines for name, lines in long.items() if lines > 420}


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {module_of(path): path for path in FILES}
    arrows = {
        module: {name if name in modules else name.rpartition(".")[0] for name in imported(path)} & set(modules)
        for module, path in modules.items()
    }
    open_: list[str] = []
    closed: set[str] = set()

    def visit(module: str) -> None:
        assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
        if module in closed:
            return
        open_.append(module)
        for other in sorted(arrows[module]):
            visit(other)
        closed.add(open_.pop())

    for module in sorted(modules):
        visit(module)


def test_one_room_knows_kafka_and_two_know_torch() -> None:
    torch = {
        "learners",
        "learners.networks",
        "learners.gradient",
        "learners.monitoring",
        "learners.evaluation",
        "learners.labels",
        "learners.stream",
    }
    for path in FILES:
        text = path.read_text()
        if "\nfrom kafka" in text or "\nimport kafka" in text:
            assert (ROOT / "streaming" / "kafka") in path.parents
        if "import torch\n" in text or "from torch" in text:
            assert room_of(module_of(path)) in torch or (ROOT / "experiments" / "studies" / "training") in path.parents
