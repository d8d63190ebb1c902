"""Copies of an archive differ in their id; one archive keeps its id whatever path leads to it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dqmstream.service.consume import default_group
from dqmstream.storage.archive import Archive
from dqmstream.storage.copies import copy_id


def test_a_copy_has_another_default_group_and_a_move_or_a_link_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive.create(tmp_path / "A")
    group = default_group(archive)
    assert group.startswith(f"dqmstream-{archive.archive_id}-")
    subprocess.run(["cp", "-a", tmp_path / "A", tmp_path / "B"], check=True)
    copy = Archive.open(tmp_path / "B")
    assert copy.archive_id == archive.archive_id
    assert default_group(copy) != group
    (tmp_path / "link").symlink_to(tmp_path / "A")
    monkeypatch.chdir(tmp_path)
    for name in ("A", "link", "B/../A"):
        assert default_group(Archive.open(Path(name))) == group
    (tmp_path / "A").rename(tmp_path / "moved")
    assert default_group(Archive.open(tmp_path / "moved")) == group


def test_a_copy_in_the_place_of_the_original_is_another(tmp_path: Path) -> None:
    """As after a restore from a backup; the path is the same, and the inode may be."""
    place = tmp_path / "A"
    place.mkdir()
    before = copy_id(place)
    shutil.copytree(place, tmp_path / "backup")
    place.rmdir()
    shutil.copytree(tmp_path / "backup", place)
    assert copy_id(place) != before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        copy_id(tmp_path / "nowhere")
