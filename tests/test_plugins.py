"""Other installed packages are found by their entry points, once, and one that cannot be loaded is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dqmstream.errors import InputError
from dqmstream.plugins import READERS, STRATEGIES, load_plugins
from tests.packages import installed


def test_what_a_package_announces_is_imported_once_and_only_for_its_group(tmp_path: Path) -> None:
    with installed(
        tmp_path, READERS, "import sys\nsys.outside_loads = getattr(sys, 'outside_loads', 0) + 1\n", name="outside_once"
    ):
        load_plugins(STRATEGIES)
        assert "outside_once" not in sys.modules
        load_plugins(READERS)
        load_plugins(READERS)
    assert sys.outside_loads == 1  # type: ignore[attr-defined]


def test_an_entry_point_that_cannot_be_loaded_is_one_line_that_names_it_and_its_package(tmp_path: Path) -> None:
    with installed(tmp_path, READERS, "raise RuntimeError('its library\\nis missing')", name="outside_broken", point="ours"):
        for _ in range(2):
            with pytest.raises(InputError) as caught:
                load_plugins(READERS)
    line = str(caught.value)
    assert "\n" not in line
    assert "ours = outside_broken (dqmstream.readers) of the package outside_broken cannot be loaded" in line
    assert "RuntimeError: its library is missing" in line
