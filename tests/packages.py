"""A package as pip would install it, for tests of entry points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dqmstream.plugins import load_plugins


@contextmanager
def installed(
    folder: Path, group: str, source: str, *, name: str = "outside_package", point: str = "its_entry"
) -> Iterator[None]:
    """Inside, the module `name` of this source is installed and announced in the group."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{point} = {name}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        load_plugins.cache_clear()
        try:
            yield
        finally:
            load_plugins.cache_clear()
