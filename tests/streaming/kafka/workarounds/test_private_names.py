"""Every private name of the client that is used is listed, and the installed version has it."""

from __future__ import annotations

import ast
import inspect
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

from dqmstream.streaming import kafka
from dqmstream.streaming.kafka.workarounds.private_names import PRIVATE_NAMES

ROOM = Path(kafka.__file__).parent
LISTED = {name for names in PRIVATE_NAMES.values() for name in names}


def private_names_used(path: Path) -> set[str]:
    """Private attributes of anything but `self` and `cls`, as `consumer._fetcher` or `self._cluster._brokers`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


@pytest.mark.parametrize("place", PRIVATE_NAMES)
def test_the_installed_client_has_the_names_that_are_used(place: str) -> None:
    parts = place.split(".")
    cut = next(k for k, part in enumerate(parts) if part[0].isupper())
    owner = reduce(getattr, parts[cut:], import_module(".".join(parts[:cut])))
    source = "".join(inspect.getsource(base) for base in owner.__mro__ if base.__module__.startswith("kafka"))
    for name in PRIVATE_NAMES[place]:
        assert hasattr(owner, name) or f"self.{name} = " in source, f"{place} has no {name}"


@pytest.mark.parametrize("path", sorted(ROOM.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOM)))
def test_only_workarounds_use_private_names_of_the_client_and_all_are_listed(path: Path) -> None:
    used = private_names_used(path) - {"_replace"}  # of named tuples, public in spite of its name
    assert used <= (LISTED if path.parent.name == "workarounds" else set())


def test_every_listed_name_is_used() -> None:
    text = "".join(path.read_text() for path in (ROOM / "workarounds").glob("*.py") if path.name != "private_names.py")
    helpers = {"_fetcher", "_manager", "_subscription", "_metadata"}  # used by functions of private_names itself
    assert {name for name in LISTED - helpers if name not in text} == set()
