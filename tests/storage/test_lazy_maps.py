"""A run's maps are read when they are used, and only those that are used."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqmstream.errors import ArchiveError
from dqmstream.storage import lazy_maps
from dqmstream.storage.archive import Archive
from dqmstream.storage.writer import ArchiveWriter
from tests.maps import lumisection, row, rows


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Run 7 with lumisections 1 to 12 in two partitions; 3 is a revision filed last, so rows lie in another order."""
    made = Archive.create(tmp_path / "A")
    writer = ArchiveWriter(made)
    writer.append("feed", 0, rows(made, 7, range(1, 7), 0), 0, 6)
    writer.append("feed", 1, rows(made, 7, range(7, 13), 0), 0, 6)
    writer.append("feed", 0, [row(made, 7, 3, 6, seed=5)], 6, 7)
    return made.refresh()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Number of maps of each reading."""
    taken: list[int] = []
    real = lazy_maps.read_rows

    def noted(group: Any, names: Any, which: np.ndarray) -> Any:
        taken.append(len(which))
        return real(group, names, which)

    monkeypatch.setattr(lazy_maps, "read_rows", noted)
    yield taken


def test_nothing_is_read_before_it_is_used_and_once_where_all_is(archive: Archive, read: list[int]) -> None:
    view = archive.run(7)
    assert view.sizes["lumisection"] == 12 and view["occupancy"].shape == (12, 1, 64, 72) and "occupancy" in repr(view)
    assert view["n_events"].values.tolist() == [1500.0] * 12
    assert not read
    one = view["occupancy"].sel(lumisection=3).values
    assert read == [1] and np.array_equal(one[0], lumisection(7, 3, seed=5).occupancy)
    assert len(view["occupancy"].values) == 12 and sorted(read) == [1, 6, 6]
    assert np.array_equal(view["occupancy"].values[2], one) and len(read) == 3


@pytest.mark.parametrize(
    "chosen",
    [
        {"lumisection": 0}, {"lumisection": -1}, {"lumisection": slice(2, 9, 3)}, {"lumisection": slice(None, None, -1)},
        {"lumisection": [5, 1, 1, 11]}, {"lumisection": []}, {"ieta": 40}, {"iphi": [0, 71], "ieta": slice(10, 4, -2)},
        {"depth": 0, "lumisection": [2, 8], "iphi": 3}, {"lumisection": slice(0, 0)},
    ],
)  # fmt: skip
def test_what_is_chosen_is_what_numpy_would_choose(archive: Archive, chosen: dict[str, Any]) -> None:
    whole = archive.run(7).load()
    expected = np.stack([lumisection(7, n, seed=5 if n == 3 else 0).occupancy for n in range(1, 13)])[:, None]
    assert np.array_equal(whole["occupancy"].values, expected)
    lazy, loaded = archive.run(7).isel(chosen), whole.isel(chosen)
    assert np.array_equal(lazy["occupancy"].values, loaded["occupancy"].values)
    assert lazy["occupancy"].dtype == loaded["occupancy"].dtype == np.float32


def test_maps_that_are_damaged_are_told_with_the_archive_when_they_are_used(archive: Archive) -> None:
    view = archive.run(7)
    shutil.rmtree(archive.path / "chunks")
    with pytest.raises(ArchiveError, match="cannot be read") as told:
        view.load()
    assert str(archive.path) in str(told.value)


def test_a_view_whose_snapshot_expired_says_so(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    view = archive.run(7)

    def gone(*_: object) -> None:
        raise FileNotFoundError("feeds/feed/0")  # what zarr raises, unless Icechunk still has the snapshot in its cache

    monkeypatch.setattr(lazy_maps, "read_rows", gone)
    with pytest.raises(ArchiveError, match=r"the snapshot of this view has expired .* open the archive again"):
        view.load()
