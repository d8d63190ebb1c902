"""Where a figure comes from: a digest of the code that it depends on, the commit, and the versions of the libraries."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]

_SOURCES = (
    "lumisection.py",
    "learners",
    "experiments/simulator",
    "experiments/benchmark/bounds.py",
    "experiments/statistics.py",
    "experiments/benchmark/cells.py",
)
"""What the lines of a cell depend on, below the package. What reads finished cells (tables, figures) is left out."""

_LIBRARIES = ("dqmstream", "numpy", "scipy", "torch", "avalanche-lib", "timm")


@functools.cache
def code_digest(*more: str) -> str:
    """Sixteen hexadecimal digits that change with the code of `_SOURCES`, and not with its comments, docstrings or layout.

    more: files or folders below the package on which the figures depend too.
    """
    digest = hashlib.sha256()
    for source in (*_SOURCES, *more):
        place = _PACKAGE / source
        for path in [place] if place.suffix else sorted(place.rglob("*.py")):
            digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\n{statements(path.read_text())}\n".encode())
    return digest.hexdigest()[:16]


def statements(source: str) -> str:
    """What a module does, without comments, text that stands for itself, and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [inner for inner in node.body if not _is_text(inner)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@functools.cache
def versions() -> dict[str, str]:
    """Python and the libraries that compute, without importing them; "" for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source tree
        return ""


@functools.cache
def commit() -> str:
    """The commit of the source tree that runs, with a + where files differ from it; "" outside of one."""
    root = _PACKAGE.parent
    if not (root / ".git").exists():
        return ""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return told.stdout.strip()
