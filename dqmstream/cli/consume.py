"""`dqmstream consume`: the service."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dqmstream.cli import output
from dqmstream.cli.options import BROKER, LEARNER, NEW_ARCHIVE, Json, finite, show, with_settings
from dqmstream.settings import MAX_WAIT_S, Settings


@with_settings("archive", "state", *BROKER, *NEW_ARCHIVE, "accept_others", "max_events", "name", *LEARNER, "idle_s")
def consume(
    settings: Settings,
    no_learn: Annotated[bool, typer.Option("--no-learn", help="file lumisections only, start no learner")] = False,
    until_idle: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=MAX_WAIT_S,
            callback=finite,
            help="exit after so many seconds without a message, once all runs are learnt",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the service: file each lumisection once and only once, and learn runs as they become complete.

    SIGTERM and SIGINT file what was read, and end it.
    """
    from dqmstream.service.consume import consume_topic

    with output.bars() as progress:
        result = consume_topic(
            settings,
            learn=not no_learn,
            until_idle_s=until_idle,
            progress=output.consume_bar(progress),
        )
    show(result, as_json, describe_consumed(result))
    if code := result["exit_code"]:
        raise typer.Exit(code)


def describe_consumed(result: dict[str, Any]) -> str:
    """One line: what was filed, what was learnt, what is left."""
    learner = result["learner"]
    learnt = f"; {len(learner['runs'])} runs learnt, accuracy {output.number(learner['average_accuracy'])}" if learner else ""
    left = f"; {result['waiting']} messages were read but not filed; they will be read again" if result["waiting"] else ""
    failed = f"; the learner failed: {result['learner_error']}" if result["learner_error"] else ""
    return (
        f"{result['messages']} messages: {result['rows']} lumisections filed, {result['duplicates']} duplicates, "
        f"{result['revisions']} revisions, {result['dead']} dead letters in {result['seconds']:.1f} s{learnt}{left}{failed}"
    )
