"""A single message does not name an archive's source: rows wait until many agree, or the operator has named it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from dqmstream.errors import DataLostError, InputError
from dqmstream.lumisection import Lumisection
from dqmstream.service.consume import consume
from dqmstream.settings import Settings
from dqmstream.storage.archive import Archive
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.writer import ArchiveWriter
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.message import Message, Polled
from dqmstream.streaming.source_agreement import AGREEING, ASKED, ROOM
from dqmstream.streaming.wire import encode
from tests.maps import SOURCE, check_tiling, lumisection, row

FEED = "hcal@cluster.topic"
OTHER = "/Muon/Online#Other"


def messages(records: Sequence[Lumisection]) -> list[Message]:
    return [Message(0, offset, *encode(record)) for offset, record in enumerate(records)]


def of(source: str, numbers: range) -> list[Lumisection]:
    return [lumisection(7, number, source=source) for number in numbers]


@contextmanager
def filing(archive: Archive, sent: Sequence[Message], **settings: object) -> Iterator[Ingest]:
    """An ingest that has read all messages that are not filed yet."""
    filed = archive.refresh().next_offset(FEED, 0) or 0
    feed = InProcessFeed(FEED, lambda: iter(sent), max_records=16)
    loop = Ingest(
        feed, ArchiveWriter(archive), FolderDeadLetters(archive.path.parent / "L"), topic="hcal", **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    try:
        while loop.counts.messages < len(sent) - filed:
            loop.step(0.05)
        yield loop
    finally:
        loop.close()


def numbers(archive: Archive) -> list[int]:
    return archive.refresh().run(7)["lumisection"].values.tolist() if archive.refresh().runs() else []


def dead(archive: Archive) -> list[int]:
    control = archive.refresh().control(FEED, 0)
    return control["offset"].values[control["kind"].values == ControlKind.DEAD].tolist()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "A")


@pytest.mark.parametrize("foreign", [1, 5])
def test_foreign_rows_that_come_first_become_dead_letters_and_all_others_are_filed(archive: Archive, foreign: int) -> None:
    sent = messages(of(OTHER, range(1, 1 + foreign)) + of(SOURCE, range(101, 301)))
    with filing(archive, sent) as loop:
        assert loop.drain()
    assert archive.refresh().source == SOURCE
    assert numbers(archive) == list(range(101, 301))
    assert dead(archive) == list(range(foreign))
    check_tiling(archive.refresh())


def test_rows_too_few_to_agree_wait_unfiled_are_told_and_are_filed_when_more_have_come(archive: Archive) -> None:
    """Also after a restart, since none of their offsets was passed; a lumisection that comes twice counts once."""
    few = of(SOURCE, range(1, AGREEING)) + of(SOURCE, range(1, 4))
    with filing(archive, messages(few)) as loop:
        assert loop.drain()
        assert loop.waiting == len(few)
        assert f"{AGREEING - 1} lumisections were not filed" in loop.open_question
        assert f"{AGREEING - 1} of '{SOURCE}'" in loop.open_question and "give --source" in loop.open_question
    assert archive.refresh().offsets() == {}
    with filing(archive, messages([*few, *of(SOURCE, range(AGREEING, AGREEING + 1))])) as loop:
        assert loop.drain()
        assert (loop.waiting, loop.open_question) == (0, "")
    assert numbers(archive) == list(range(1, AGREEING + 1))
    assert dead(archive) == []


def test_what_comes_before_the_first_row_that_names_a_source_does_not_wait(archive: Archive) -> None:
    sent = [Message(0, 0, None, b"no row"), *(Message(0, 1 + k, *encode(one)) for k, one in enumerate(of("", range(1, 3))))]
    sent += [Message(0, 3, *encode(lumisection(7, 3))), Message(0, 4, None, b"no row")]
    with filing(archive, sent) as loop:
        assert loop.drain()
        assert loop.waiting == 2
    assert (numbers(archive), dead(archive)) == ([1, 2], [0])


def test_a_source_that_the_operator_names_is_used_at_once(archive: Archive) -> None:
    with filing(archive, messages(of(OTHER, range(1, 40)) + of(SOURCE, range(40, 41))), source=SOURCE) as loop:
        assert loop.drain()
    assert archive.refresh().source == SOURCE
    assert (numbers(archive), dead(archive)) == ([40], list(range(39)))


def test_many_that_do_not_agree_end_the_service_with_what_they_say(archive: Archive) -> None:
    mixed = [one for pair in zip(of(SOURCE, range(1, ASKED)), of(OTHER, range(1, ASKED)), strict=True) for one in pair]
    with (
        pytest.raises(InputError, match=rf"\d+ of '{SOURCE}', \d+ of '{OTHER}'\): give --source"),
        filing(archive, messages(mixed)) as loop,
    ):
        loop.drain()
    assert archive.refresh().offsets() == {}


def test_no_more_waits_for_an_agreement_than_has_room(archive: Archive) -> None:
    sent = [*messages(of(SOURCE, range(1, 2))), *(Message(0, 1 + k, None, b"x") for k in range(ROOM + 100))]
    with pytest.raises(InputError, match="1 lumisection was not filed"), filing(archive, sent, max_rows=4) as loop:
        loop.drain()


def test_the_source_that_another_worker_settled_is_accepted(archive: Archive) -> None:
    """Two workers of a new archive, of which one has many rows."""
    with filing(archive, messages(of(SOURCE, range(1, 4)))) as loop:
        assert loop.drain() and loop.waiting == 3
        first = Ingest(
            InProcessFeed("other@feed", lambda: iter(messages(of(SOURCE, range(101, 141))))),
            ArchiveWriter(Archive.open(archive.path)),
            FolderDeadLetters(archive.path.parent / "L"),
            topic="hcal",
        )
        while first.counts.messages < 40:
            first.step(0)
        assert first.drain()
        first.close()
        assert loop.drain() and loop.waiting == 0
    assert numbers(archive) == [1, 2, 3, *range(101, 141)]


def test_a_source_that_fits_none_of_many_ends_the_service_before_an_offset_is_passed(tmp_path: Path) -> None:
    """As after a typing error in --source; then for an archive that has rows of another feed."""
    mistyped = Archive.create(tmp_path / "A", source=OTHER)
    sent = messages(of(SOURCE, range(1, 1 + AGREEING)))
    told = rf"none of the {AGREEING} lumisections .* '{OTHER}': there are {AGREEING} of '{SOURCE}'.* remove this archive"
    with pytest.raises(InputError, match=told), filing(mistyped, sent) as loop:
        loop.drain()
    ArchiveWriter(mistyped).append("other@feed", 0, [row(mistyped, 5, 1, 0)], 0, 1)
    told = r"read this topic into another archive; .* --accept-others"
    with pytest.raises(InputError, match=told), filing(mistyped, sent) as loop:
        loop.drain()
    assert mistyped.refresh().next_offset(FEED, 0) is None and list((tmp_path / "L").glob("**/*.json")) == []


@pytest.mark.parametrize("sources", [[OTHER] * 40 + [SOURCE], [OTHER, "/a#b"] * 20 + [SOURCE]])
def test_foreign_rows_before_one_that_fits_become_dead_letters_however_many(tmp_path: Path, sources: list[str]) -> None:
    archive = Archive.create(tmp_path / "A", source=SOURCE)
    sent = messages([lumisection(7, 1 + k, source=source) for k, source in enumerate(sources)])
    with filing(archive, sent) as loop:
        assert loop.drain()
    assert (numbers(archive), dead(archive)) == ([41], list(range(40)))
    later = [Message(0, 41 + k, *encode(one)) for k, one in enumerate(of(OTHER, range(42, 82)))]
    with filing(archive, sent + later) as loop:  # of a feed that has rows here, after a restart
        assert loop.drain()
    assert (numbers(archive), dead(archive)) == ([41], [*range(40), *range(41, 81)])


def test_few_foreign_rows_wait_are_reported_at_the_end_and_become_dead_letters_with_accept_others(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A", source=SOURCE)
    sent = messages(of(OTHER, range(1, 4)) + of("", range(101, 103)))
    with filing(archive, sent) as loop:
        assert loop.drain() and loop.waiting == 5
        assert f"none of the 3 lumisections that were read is of the archive's source, '{SOURCE}'" in loop.open_question
    assert archive.refresh().next_offset(FEED, 0) is None
    with filing(archive, sent, accept_others=True) as loop:
        assert loop.drain() and (loop.waiting, loop.open_question) == (0, "")
    assert (numbers(archive), dead(archive)) == ([101, 102], [0, 1, 2])


def test_many_of_different_sources_of_which_none_fits_end_the_service(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "A", source=SOURCE)
    sent = messages([lumisection(7, 1 + k, source=f"/Stranger{k % 8}#x") for k in range(ASKED)])
    with pytest.raises(InputError, match=rf"none of the {ASKED} .* and 5 sources more"), filing(archive, sent) as loop:
        loop.drain()
    assert archive.refresh().next_offset(FEED, 0) is None


class Ending(InProcessFeed):
    """A feed that ends for good after its last message: its topic was made again."""

    def poll(self, timeout_s: float) -> Polled:
        polled = super().poll(timeout_s)
        if self.exhausted and not polled.slices:
            raise DataLostError("made again")
        return polled


@pytest.mark.parametrize(
    ("feed", "error", "filed"),
    [(InProcessFeed, InputError, []), (Ending, DataLostError, [1, 2, 3])],
    ids=["idle", "made again"],
)
def test_the_service_says_what_waits_and_files_it_where_it_would_be_lost(
    archive: Archive, feed: Callable[..., InProcessFeed], error: type[Exception], filed: list[int]
) -> None:
    settings = Settings(archive=archive.path)
    sent = messages(of(SOURCE, range(1, 4)))
    with pytest.raises(error, match="give --source" if error is InputError else "made again"):
        consume(
            archive, feed(FEED, lambda: iter(sent)), FolderDeadLetters(archive.path.parent / "L"), settings,
            topic="hcal", learn=False, until_idle_s=0.1,
        )  # fmt: skip
    assert numbers(archive) == filed
