"""Verification: a healthy archive has no finding, and each kind of damage is found and named, even beside other damage."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import Blosc, Zstd

from dqmstream.lumisection import Lumisection
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Control, Entry, make_row
from dqmstream.storage.imports.importer import import_files
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.maintenance.verify import rows_of, verify
from dqmstream.storage.writer import ArchiveWriter
from tests.maps import counts, row, rows, write_run

FEED = "hcal@cluster.topic"
LOG = f"feeds/{FEED}/0"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that an archive can hold: 150 rows of run 1 in three chunks of maps, duplicates and revisions in two partitions, a
    dead letter, a hole, a gap, starts and stops, and two imports of run 3, the second a revision of one lumisection."""
    folder = tmp_path_factory.mktemp("original")
    archive = Archive.create(folder / "A")
    writer = ArchiveWriter(archive)
    writer.append(FEED, 0, [Control(40, 41, ControlKind.START, 1), *rows(archive, 1, range(1, 151), 41)], 40, 191)
    writer.append(
        FEED,
        1,
        [row(archive, 2, 1, 0), row(archive, 1, 5, 1, seed=1), row(archive, 1, 6, 2), row(archive, 2, 1, 3, seed=2)],
        0,
        4,
    )
    others = [
        Control(191, 192, ControlKind.DEAD, reason="the value is empty"),
        Control(192, 197, ControlKind.HOLE),
        Control(197, 300, ControlKind.GAP, reason="the broker deleted it"),
        row(archive, 2, 1, 300, seed=2),
        Control(301, 302, ControlKind.STOP, 1),
    ]
    writer.append(FEED, 0, others, 191, 302)
    maps = counts(3, 5)
    for _ in range(2):
        import_files([write_run(folder / "data", 3, maps)], lambda: archive, dtype=archive.dtype, depths=1)
        maps[2] += 1
    return archive.path


@pytest.fixture
def archive(original: Path, tmp_path: Path) -> Archive:
    """A copy for each test to damage."""
    shutil.copytree(original, tmp_path / "A")
    return Archive.open(tmp_path / "A")


def behind(archive: Archive, change: Callable[[zarr.Group], None]) -> Archive:
    """The archive after a change that bypassed the API."""
    session = archive.writable_session()
    change(zarr.open_group(session.store, mode="r+", use_consolidated=False))
    session.commit("a hand behind the API")
    return Archive.open(archive.path)


def setting(column: str, entry: int | slice, value: object, log: str = LOG) -> Callable[[zarr.Group], None]:
    def change(root: zarr.Group) -> None:
        root[f"{log}/{column}"][entry] = value

    return change


def dropped(name: str) -> Callable[[zarr.Group], None]:
    """The last entry of a column, or of every column of a table, is cut off."""

    def change(root: zarr.Group) -> None:
        node = root[name]
        for array in [node] if isinstance(node, zarr.Array) else [array for _, array in node.arrays()]:
            array.resize((array.shape[0] - 1, *array.shape[1:]))

    return change


def test_a_healthy_archive_has_no_finding(archive: Archive) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(archive, lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (159, 159) == (rows_of(archive), rows_of(archive))
    assert verify(Archive.create(archive.path.with_name("empty"))) == []


def test_layout_1_and_what_became_of_it_have_no_finding(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).parents[1] / "data" / "layout1.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    old = Archive.open(tmp_path / "layout1")
    assert verify(old) == []
    ArchiveWriter(old).append(FEED, 0, [row(old, 7, 6, 111)], 111, 112)
    assert verify(old.refresh()) == verify(old.at("first")) == []


WHERE_5 = f"{FEED}/0 row 4 (run 1, lumisection 5)"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (setting("n_events", 4, 7.0), [(WHERE_5, "`content` differs")]),
        (setting("pileup", 4, -7.0), [(WHERE_5, "`content` differs"), (WHERE_5, "pileup is negative")]),
        (setting("content", 4, 7), [(WHERE_5, "`content` differs")]),
        (setting("occupancy", 4, np.nan), [(WHERE_5, "NaN"), (WHERE_5, "`content` differs")]),
        (setting("quality", 4, 2), [(WHERE_5, "flagged as a revision, and")]),
        (setting("quality", 4, 0x90), [(WHERE_5, "means nothing")]),
        (setting("quality", slice(1, 3), 0, f"feeds/{FEED}/1"), [("/1 rows 1-2 (run 1, lumisection 5)", "not flagged")]),
        (setting("lumisection", 4, 0), [("row 4 (run 1, lumisection 0)", "not in 1.."), ("/1 row 1", "was not filed before")]),
        (setting("offset", slice(4, 6), [46, 45]), [("row 5 (run 1, lumisection 6)", "not above that of the row before")]),
        (setting("offset", 4, 44), [(WHERE_5, "not above"), ("", "offset 44 is covered twice"), ("", "offset 45 in no row")]),
        (setting("control/until", 1, 193), [(f"{FEED}/0", "offset 192 is covered twice")]),
        (setting("control/kind", 1, 17), [("control entry 1", "kind means nothing")]),
        (setting("control/lumisection", 4, 9), [("control entry 4", "duplicate of run 2, lumisection 9, which is not")]),
        (lambda root: root[LOG].attrs.update(next_offset=310), [(f"{FEED}/0", "offsets 302-309 in no row")]),
        (lambda root: root[LOG].attrs.update(next_offset=300), [(f"{FEED}/0", "offsets 300-301 at or past next_offset 300")]),
        (lambda root: root[LOG].attrs.update(first_offset=41), [(f"{FEED}/0", "offset 40 lies before first_offset 41")]),
        (dropped(f"{LOG}/control"), [(f"{FEED}/0", "offset 301 in no row and no control entry")]),
        (dropped(f"{LOG}/pileup"), [(f"{FEED}/0", "pileup has 149 entries, not 150")]),
        (dropped(f"{LOG}/occupancy"), [(f"{FEED}/0", "occupancy has 149 entries, not 150")]),
        (lambda root: root.__delitem__(f"{LOG}/produced"), [(f"{FEED}/0", "there is no produced")]),
        (dropped("imports"), [("import/0", "the imports end at offset 7, the feed at 14")]),
        (setting("run", 0, 4, "imports"), [("imports file 0 (Run3", "start of run 4"), ("", "stop of run 4"), ("", "not all")]),
        (setting("sha256", 0, "x", "imports"), [("imports file 0", "sha256")]),
        (setting("ieta", 0, 0, ""), [("ieta", "not the geometry's")]),
    ],
)
def test_what_was_changed_behind_the_api_is_found(
    archive: Archive, change: Callable[[zarr.Group], None], expected: list[tuple[str, str]]
) -> None:
    found = verify(behind(archive, change))
    for where, what in expected:
        assert any(where in finding.where and what in finding.what for finding in found), found
    assert len(found) == len(expected), found


def test_what_was_filed_twice_is_found(archive: Archive) -> None:
    """As by a writer that does not know the rows that are there."""

    def change(root: zarr.Group) -> None:
        log = root[LOG]
        for _, array in log.arrays():
            array.append(array[4:5])
        log["offset"][150] = 302
        log["committed"][150] = 2**62
        log.attrs["next_offset"] = 303

    where = f"{FEED}/0 row 150 (run 1, lumisection 5)"
    assert [
        (finding.where, finding.what.partition(":")[0].partition(",")[0]) for finding in verify(behind(archive, change))
    ] == [
        (where, "not flagged as a revision"),
        (where, "filed twice"),
    ]


def flip(file: Path) -> None:
    """Flip one bit, the first after the middle that changes values: among zeros, LZ4 may decode to the same."""
    whole = file.read_bytes()
    codec = Blosc() if file.stat().st_size > 20_000 else Zstd()
    for place in range(len(whole) // 2, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        try:
            if codec.decode(bytes(damaged)) == codec.decode(whole):
                continue
        except RuntimeError:
            pass
        file.write_bytes(damaged)
        return


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def files_of(archive: Archive, kind: str, change: Callable[[], object]) -> list[Path]:
    """The files that a change brings, by size, the largest last."""
    before = set((archive.path / kind).iterdir())
    change()
    return sorted(set((archive.path / kind).iterdir()) - before, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_chunk_of_maps_is_named_and_the_rest_is_read(archive: Archive, damage: Callable[[Path], None]) -> None:
    """The first of two chunks is damaged, and a value in the second is changed."""
    writer = ArchiveWriter(archive)
    files = files_of(archive, "chunks", lambda: writer.append(FEED, 2, rows(archive, 9, range(1, 65), 0), 0, 64))
    writer.append(FEED, 2, rows(archive, 9, range(65, 100), 64), 64, 99)
    head = behind(archive, setting("n_events", 80, 3.0, f"feeds/{FEED}/2"))
    damage(files[-1])
    found = verify(Archive.open(head.path))
    assert len(found) == 2, found
    if "cannot be read" in found[0].what or damage is not flip:
        assert found[0].where == f"{FEED}/2 rows 0-63 (run 9, lumisection 1)"
        assert found[0].what.startswith("occupancy cannot be read: ")
    else:
        assert found[0].where.startswith(f"{FEED}/2 row") and "`content` differs" in found[0].what
    assert found[1].where == f"{FEED}/2 row 80 (run 9, lumisection 81)"


def noise(archive: Archive, size: int) -> list[Entry]:
    """Rows of run 9 whose columns do not compress: small chunks are stored in a manifest, not in a file."""
    rng = np.random.default_rng(0)
    numbers = np.cumsum(rng.integers(1, 10_000, size)).tolist()
    return [
        make_row(
            Lumisection(9, number, rng.integers(0, 9, (64, 72)), int(rng.integers(2**60)), 10 + rng.random(), rng.random()),
            offset,
            archive.geometry,
            archive.dtype,
            produced_ns=int(rng.integers(2**60)),
        )
        for offset, number in enumerate(numbers)
    ]


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_column_is_named_and_the_rest_is_read(archive: Archive, damage: Callable[[Path], None]) -> None:
    """In any column: a damaged number would otherwise be read as another number."""
    writer = ArchiveWriter(archive)
    files = files_of(archive, "chunks", lambda: writer.append(FEED, 2, noise(archive, 400), 0, 400))
    columns = [file for file in files if file.stat().st_size < 5000]
    assert len(columns) >= 6
    named = set()
    for file in columns:
        whole = file.read_bytes()
        damage(file)
        found = verify(Archive.open(archive.path))
        assert len(found) == 1, found
        assert found[0].where.startswith(f"{FEED}/2 rows 0-399")
        assert " cannot be read: " in found[0].what and "\n" not in found[0].what
        named.add(found[0].what.partition(" ")[0])
        file.write_bytes(whole)
    assert named >= {"time", "n_events", "pileup", "content", "produced", "lumisection"}
    assert verify(Archive.open(archive.path)) == []


def test_a_damaged_manifest_is_told(archive: Archive) -> None:
    writer = ArchiveWriter(archive)
    files = files_of(archive, "manifests", lambda: writer.append(FEED, 2, rows(archive, 9, range(1, 9), 0), 0, 8))
    assert len(files) >= 8
    for file in files:
        whole = file.read_bytes()
        truncate(file)
        found = verify(Archive.open(archive.path))
        assert found and all(finding.where.startswith(f"{FEED}/2 rows 0-7") for finding in found), found
        file.write_bytes(whole)
