"""Provenance of a figure: digest of the code that it depends on, commit, and versions of the libraries."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]

_SHARED = ("lumisection.py", "learners", "experiments/simulator")
"""What the figures of every experiment depend on, below the package."""

_LIBRARIES = ("dqmstream", "numpy", "scipy", "torch", "avalanche-lib", "timm")


def made_by(*sources: str) -> dict[str, Any]:
    """Entries of a record that tell which code computed it: "code", "commit" and "versions". sources: as in `code_digest`."""
    return {"code": code_digest(*sources), "commit": commit(), "versions": versions()}


@functools.cache
def code_digest(*sources: str) -> str:
    """Sixteen hexadecimal digits that change with the code of learners, simulator and `sources`.

    sources: files or folders below the package. Comments, docstrings and layout do not count.
    """
    digest = hashlib.sha256()
    for source in (*_SHARED, *sources):
        place = _PACKAGE / source
        for path in [place] if place.suffix else sorted(place.rglob("*.py")):
            digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\n{statements(path.read_text())}\n".encode())
    return digest.hexdigest()[:16]


def statements(source: str) -> str:
    """The syntax tree of a module as text, without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [inner for inner in node.body if not _is_text(inner)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and the numerical libraries, which are not imported; "" for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # running from a source tree
        return ""


@functools.cache
def commit() -> str:
    """The commit of the running source tree, with a + if files differ from it; "" outside of a git tree."""
    root = _PACKAGE.parent
    if not (root / ".git").exists():
        return ""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return described.stdout.strip()
