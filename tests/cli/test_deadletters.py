"""The command line for dead letters: listed, shown, sent back; what was mended lands in the archive once."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqmstream.cli.deadletters import _printable, hex_dump
from dqmstream.storage.archive import Archive
from dqmstream.streaming.dead_letters import DeadLetter
from dqmstream.streaming.kafka import KafkaDeadLetters, KafkaSender, create_topic
from dqmstream.streaming.message import Message
from dqmstream.streaming.wire import encode
from tests.commandline import dqmstream, result, told
from tests.maps import SOURCE, check_tiling, lumisection

HOSTILE = "\x1b[2J[bold]no[/nothing] good\n"


def deadletters(bootstrap: str, topic: str, command: str, *arguments: object) -> dict[str, Any]:
    return result("deadletters", command, *arguments, "--bootstrap", bootstrap, "--topic", topic)


def put(bootstrap: str, topic: str, *messages: Message, reasons: tuple[str, ...] = ("no good",)) -> None:
    letters = KafkaDeadLetters(bootstrap, f"{topic}.deadletter")
    several = (reasons * len(messages))[: len(messages)]
    letters.put([DeadLetter("hcal@c.t", topic, m, reason) for m, reason in zip(messages, several, strict=True)])
    letters.close()


def message(offset: int, value: bytes = b"v") -> Message:
    return Message(0, offset, b"7", value, [("crc32c", b"00000000")], 1_650_000_000_000 + offset)


@pytest.mark.kafka
def test_what_was_mended_and_sent_back_is_in_the_archive_once(
    bootstrap: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer without checksums: its messages are dead until the configuration says that they may come without."""
    create_topic(bootstrap, topic, 2)
    sender = KafkaSender(bootstrap, topic)
    for number in range(1, 6):
        key, value, headers = encode(lumisection(7, number))
        sender.send(key, value, headers if number % 2 else [])
    sender.close()
    consume = (
        "consume",
        "--bootstrap",
        bootstrap,
        "--topic",
        topic,
        "--archive",
        tmp_path / "A",
        "--source",
        SOURCE,
        "--no-learn",
        "--until-idle",
        1,
    )
    done = result(*consume)
    assert (done["rows"], done["dead"]) == (3, 2)
    listed = deadletters(bootstrap, topic, "list")
    assert [one["reason"] for one in listed["letters"]] == ["no header crc32c"] * 2
    assert (listed["total"], {one["topic"] for one in listed["letters"]}) == (2, {topic})
    monkeypatch.setenv("DQMSTREAM_CRC_REQUIRED", "false")
    keys = [one["key"] for one in listed["letters"]]
    assert deadletters(bootstrap, topic, "republish", keys[0])["sent"] == 1
    assert deadletters(bootstrap, topic, "republish", "--all")["topics"] == {topic: 2}  # the first one again
    done = result(*consume)
    assert (done["rows"], done["duplicates"], done["dead"]) == (2, 1, 0)
    head = Archive.open(tmp_path / "A")
    assert [(s.run, s.lumisections, s.rows) for s in head.runs()] == [(7, 5, 5)]
    np.testing.assert_array_equal(head.run(7)["occupancy"][1, 0], lumisection(7, 2).occupancy)
    check_tiling(head)


@pytest.mark.kafka
def test_letters_are_listed_and_shown(bootstrap: str, topic: str, tmp_path: Path) -> None:
    noise = bytes(range(256)) * 2
    shown = replace(message(2, noise), key=b"\xff\x1b[2J", headers=[("a\n", b"\x00")])
    put(bootstrap, topic, message(0), message(1), shown, reasons=("first", HOSTILE, "first"))
    put(bootstrap, topic, message(0), reasons=("first",))
    assert [one["offset"] for one in deadletters(bootstrap, topic, "list")["letters"]] == [0, 1, 2]
    newest = deadletters(bootstrap, topic, "list", "--reason", "first", "--limit", 1)
    assert ([one["offset"] for one in newest["letters"]], newest["matching"], newest["total"]) == ([2], 2, 3)
    oldest = deadletters(bootstrap, topic, "list", "--limit", 2, "--oldest")
    assert [(one["offset"], one["size"], one["truncated"]) for one in oldest["letters"]] == [(0, 1, False), (1, 1, False)]
    assert oldest["letters"][0]["time"] == "2022-04-15T05:20:00.000+00:00"
    places = ("--bootstrap", bootstrap, "--dead-letter-topic", f"{topic}.deadletter")
    table = dqmstream("deadletters", "list", *places)
    assert table.returncode == 0, table.stderr
    assert "3 of 3 letters" in table.stdout and "[bold]no[/nothing]" in table.stdout and "\x1b" not in table.stdout
    file = tmp_path / "value"
    one = deadletters(bootstrap, topic, "show", "hcal@c.t/0/2", "--out", file)
    assert file.read_bytes() == noise
    assert (one["original_key"], one["headers"], one["value_hex"]) == ("\\xff\x1b[2J", [["a\n", "\x00"]], noise[:256].hex())
    plain = dqmstream("deadletters", "show", "hcal@c.t/0/2", *places)
    assert plain.returncode == 0, plain.stderr
    assert "000000f0  f0 f1" in plain.stdout and "256 more bytes" in plain.stdout and "\x1b" not in plain.stdout
    assert "exists already" in told(dqmstream("deadletters", "show", "hcal@c.t/0/2", *places, "--out", file), 3)
    assert "holds no letter nothing" in told(dqmstream("deadletters", "show", "nothing", *places), 3)


@pytest.mark.kafka
def test_a_letter_that_is_cut_is_refused_and_the_others_are_sent(bootstrap: str, topic: str) -> None:
    create_topic(bootstrap, topic, 1)
    create_topic(bootstrap, f"{topic}.deadletter", 1)
    noise = np.random.default_rng(0).bytes(3_000_000)
    put(bootstrap, topic, message(0), message(1, noise))
    done = dqmstream("deadletters", "republish", "--all", "--bootstrap", bootstrap, "--topic", topic, "--json")
    assert "letter hcal@c.t/0/1 was not sent" in (says := told(done, 3))
    assert says.endswith(f"the message itself lies at topic/partition/offset {topic}/0/1")
    assert '"sent": 1' in done.stdout.splitlines()[-1]
    alone = dqmstream("deadletters", "republish", "hcal@c.t/0/1", "--bootstrap", bootstrap, "--topic", topic)
    assert "was not sent" in told(alone, 3)
    assert alone.stdout == "0 messages sent\n"


@pytest.mark.kafka
@pytest.mark.parametrize("command", [("list",), ("show", "hcal/0/1"), ("republish", "--all")])
def test_a_missing_topic_and_an_empty_one(bootstrap: str, topic: str, command: tuple[str, ...]) -> None:
    places = ("--bootstrap", bootstrap, "--topic", topic)
    assert f"has no topic {topic}.deadletter" in told(dqmstream("deadletters", *command, *places), 4)
    create_topic(bootstrap, f"{topic}.deadletter", 1)
    done: subprocess.CompletedProcess[str] = dqmstream("deadletters", *command, *places)
    assert done.returncode == (3 if command[0] == "show" else 0), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["list", "--topic", "t"], 3, "--bootstrap is missing"),
        (["list", "--bootstrap", "127.0.0.1:1"], 3, "--topic is missing"),
        (["list", "--bootstrap", "127.0.0.1:1", "--topic", "t", "--oldest"], 3, "--oldest is for --limit"),
        (["republish", "--bootstrap", "127.0.0.1:1", "--topic", "t"], 3, "or give --all"),
        (["republish", "k", "--all", "--bootstrap", "127.0.0.1:1", "--topic", "t"], 3, "or give --all"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(arguments: list[str], code: int, says: str) -> None:
    assert says in told(dqmstream("deadletters", *arguments), code)


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    assert _printable("a\x1b[2J\nµ\u202e\ud800") == "a\\u001b[2J\\nµ\\u202e\\ud800"
    assert hex_dump(b"\x00A~\x7f\xff" + bytes(12))[0] == f"00000000  00 41 7e 7f ff{' 00' * 11}  .A~............."
    assert hex_dump(b"") == []
