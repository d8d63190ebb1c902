"""Lack of memory is not a message's fault: no offset is passed, and one line with its own exit code says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dqmstream.errors import OutOfMemoryError
from dqmstream.service.consume import consume
from dqmstream.settings import Settings
from dqmstream.storage.archive import Archive
from dqmstream.streaming import wire
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.in_process import InProcessFeed
from dqmstream.streaming.message import Message, Polled
from dqmstream.streaming.wire import da00
from tests.commandline import told
from tests.maps import SOURCE, check_tiling, lumisection

FEED = "hcal@cluster.topic"
SENT = [Message(0, number, *wire.encode(lumisection(7, 1 + number))) for number in range(6)]


class ShortOfMemory(InProcessFeed):
    """A feed that has no memory to unpack what follows the first messages."""

    def poll(self, timeout_s: float) -> Polled:
        polled = super().poll(timeout_s)
        if any(piece.start for piece in polled.slices):
            bytearray(2**62)
        return polled


@pytest.mark.parametrize("place", ["unpacked", "decoded"])
def test_lack_of_memory_passes_no_offset_and_what_was_not_filed_is_read_again(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive.create(tmp_path / "A", source=SOURCE)

    def run(feed: type[InProcessFeed]) -> None:
        consume(
            archive, feed(FEED, lambda: iter(SENT), max_records=2), FolderDeadLetters(tmp_path / "L"),
            Settings(archive=archive.path), topic="hcal", learn=False, until_idle_s=0.1,
        )  # fmt: skip

    with monkeypatch.context() as patched:
        if place == "decoded":
            real = da00.READER.read

            def read(value: bytes) -> Any:
                return bytearray(2**62) if value == SENT[3].value else real(value)

            patched.setattr(da00.READER, "read", read)
        with pytest.raises(OutOfMemoryError, match=r"no memory was left .* start again: it goes on there"):
            run(ShortOfMemory if place == "unpacked" else InProcessFeed)
    assert (archive.refresh().next_offset(FEED, 0) or 0) <= 3
    assert list(tmp_path.glob("L/**/*.json")) == []
    run(InProcessFeed)
    assert archive.refresh().run(7)["lumisection"].values.tolist() == [1, 2, 3, 4, 5, 6]
    check_tiling(archive.refresh())


@pytest.mark.parametrize("error", ["MemoryError()", "OSError(12, 'Cannot allocate memory')"])
def test_a_command_that_lacks_memory_says_so_in_one_line_with_exit_code_11(error: str) -> None:
    code = (
        "import sys\nfrom dqmstream.cli.main import main\nfrom dqmstream.service import consume\n"
        f"def consume_topic(*_, **__): raise {error}\n"
        "consume.consume_topic = consume_topic\n"
        "sys.argv[1:] = ['consume', '--bootstrap', 'b', '--topic', 't', '--archive', 'A']\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "dqmstream: no memory is left" in told(done, 11)


def test_snappy_that_unpacks_to_more_than_there_is_room_for_does_not_end_the_process() -> None:
    code = (
        "import resource, cramjam\nfrom dqmstream.streaming.kafka.codecs import unpack\n"
        "packed = bytes(cramjam.snappy.compress_raw(bytes(200 * 2**20)))\n"
        "held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held + 2**26, resource.RLIM_INFINITY))\n"
        "try: unpack(2, memoryview(packed), 2**28)\nexcept MemoryError: print('lack of memory')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "lack of memory\n"), done.stderr
