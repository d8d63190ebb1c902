"""`dqmstream deadletters`: list messages that could not be stored, and send them again."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from dqmstream.cli import output
from dqmstream.cli.options import Json, with_settings
from dqmstream.cli.terminal import tell
from dqmstream.errors import InputError
from dqmstream.settings import MAX_COUNT, Settings

if TYPE_CHECKING:
    from dqmstream.streaming.kafka.dead_letter_record import StoredLetter

app = typer.Typer(
    name="deadletters",
    no_args_is_help=True,
    help="List messages that could not be stored, and send them again once the cause is mended.",
)

SHOWN_BYTES = 256
"""Number of bytes of the value that a hex dump shows."""


_with_topic = with_settings("bootstrap", "topic", "dead_letter_topic")


def _topic_of_letters(settings: Settings) -> tuple[str, str]:
    """Broker, and topic of the dead letters."""
    return settings.need("bootstrap"), settings.dead_letter_topic or f"{settings.need('topic')}.deadletter"


@app.command(name="list")
@_with_topic
def list_(
    settings: Settings,
    reason: Annotated[str | None, typer.Option("--reason", help="only letters whose reason contains this text")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, max=MAX_COUNT, help="only the newest N letters")] = None,
    oldest: Annotated[bool, typer.Option("--oldest", help="with --limit: the oldest N letters")] = False,
    as_json: Json = False,
) -> None:
    """List dead letters, the oldest message first. A letter that was written twice is listed once."""
    from dqmstream.streaming.kafka.dead_letter_topic import list_letters

    if oldest and limit is None:
        raise InputError("--oldest is for --limit: give --limit too")
    address, letter_topic = _topic_of_letters(settings)
    letters = list_letters(address, letter_topic)
    found = [letter for letter in letters if reason is None or reason in letter.reason]
    shown = found if limit is None else found[:limit] if oldest else found[-limit:]
    if as_json:
        told = {"dead_letter_topic": letter_topic, "total": len(letters), "matching": len(found)}
        output.print_json({**told, "letters": [_facts(letter) for letter in shown]})
        return
    made = Table(title=f"{len(shown)} of {len(letters)} letters on {letter_topic}", title_justify="left")
    for column in ("key", "time", "bytes", "whole", "reason"):
        made.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
    for letter in shown:
        cells = (letter.key, _time(letter), str(letter.size), "no" if letter.cut else "yes", letter.reason)
        made.add_row(*(Text(_printable(cell)) for cell in cells))
    tell(output.out, made)


@app.command()
@_with_topic
def show(
    settings: Settings,
    key: Annotated[str, typer.Argument(help="key of the letter: feed/partition/offset")],
    out: Annotated[Path | None, typer.Option("--out", help="write the value of the message to this new file")] = None,
    as_json: Json = False,
) -> None:
    """Show one letter: headers, reason, and the first bytes of the value as a hex dump."""
    from dqmstream.streaming.kafka.dead_letter_topic import find_letter

    if out is not None and out.exists():
        raise InputError(f"{out} exists already: give the name of a new file")
    letter = find_letter(*_topic_of_letters(settings), key)
    value = letter.value or b""
    if out is not None:
        try:
            out.write_bytes(value)
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror or error}") from error
    if as_json:
        headers = [[name, _readable(content)] for name, content in letter.headers]
        original = None if letter.original_key is None else _readable(letter.original_key)
        told = {"original_key": original, "headers": headers, "value_hex": value[:SHOWN_BYTES].hex()}
        output.print_json({**_facts(letter), **told, "written": None if out is None else str(out)})
        return
    lines = [
        ("letter", letter.key),
        ("message", f"topic {letter.topic}, partition {letter.partition}, offset {letter.offset}"),
        ("time", _time(letter)),
        ("reason", letter.reason),
        ("size", f"{letter.size} bytes"),
        ("whole", f"no, {letter.obstacle}" if letter.cut else "yes"),
        ("key", "none" if letter.original_key is None else _readable(letter.original_key)),
        *((f"header {name}", _readable(content)) for name, content in letter.headers),
    ]
    for name, content in lines:
        tell(output.out, f"{_printable(name)}: {_printable(content)}")
    for line in hex_dump(value[:SHOWN_BYTES]):
        output.out.print(Text(line), soft_wrap=True)  # whose columns are bytes
    if len(value) > SHOWN_BYTES:
        tell(output.out, f"... {len(value) - SHOWN_BYTES} more bytes in the letter; --out FILE writes them all")


@app.command()
@_with_topic
def republish(
    settings: Settings,
    keys: Annotated[list[str] | None, typer.Argument(help="keys of the letters: feed/partition/offset")] = None,
    every: Annotated[bool, typer.Option("--all", help="all letters of the topic")] = False,
    to: Annotated[
        str | None, typer.Option("--to", help="topic to send to (default: the topic that each message came from)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send messages again, with their key, value and headers. The letters stay; a lumisection is still filed only once.

    A letter that does not hold the whole message is refused; the exit code is then 3.
    """
    from dqmstream.streaming.kafka.republishing import republish as send_back

    if bool(keys) == every:
        raise InputError("name the letters to send, or give --all")
    address, letter_topic = _topic_of_letters(settings)
    with output.bars() as progress:
        kept = output.bar_callback(progress, "republish")
        done = send_back(address, letter_topic, None if every else keys, to, kept)
    for letter in done.refused:
        tell(output.err, _printable(f"dqmstream: letter {letter.key} was not sent: {letter.obstacle}"), style="red")
    if as_json:
        refused = [{**_facts(letter), "obstacle": letter.obstacle} for letter in done.refused]
        output.print_json({"sent": sum(done.sent.values()), "topics": done.sent, "refused": refused})
    else:
        targets = ", ".join(f"{count} to {name}" for name, count in sorted(done.sent.items()))
        tell(output.out, f"{sum(done.sent.values())} messages sent{': ' if targets else ''}{targets}")
    if done.refused:
        raise typer.Exit(InputError.exit_code)


def _facts(letter: StoredLetter) -> dict[str, Any]:
    """A letter as --json prints it."""
    return {
        "key": letter.key,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "time": _time(letter) if letter.timestamp_ms else None,
        "timestamp_ms": letter.timestamp_ms,
        "reason": letter.reason,
        "size": letter.size,
        "truncated": bool(letter.cut),
        "cut": list(letter.cut),
    }


def _time(letter: StoredLetter) -> str:
    """Time of the message, ISO 8601 in UTC. It may be any number, since producers can set it."""
    if not letter.timestamp_ms:
        return "unknown"
    try:
        return datetime.fromtimestamp(letter.timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{letter.timestamp_ms} ms"


def hex_dump(data: bytes) -> list[str]:
    """Lines of sixteen bytes: position, hexadecimal, ASCII."""
    return [
        f"{at:08x}  {data[at : at + 16].hex(' '):<47}  {''.join(chr(b) if 32 <= b < 127 else '.' for b in data[at : at + 16])}"
        for at in range(0, len(data), 16)
    ]


def _readable(data: bytes) -> str:
    """Bytes from a message as text; those that are no UTF-8 are escaped."""
    return data.decode("utf-8", "backslashreplace")


def _printable(text: str) -> str:
    """Text from a message for a terminal: on one line, with control characters escaped."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
