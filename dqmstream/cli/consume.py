"""`dqmstream consume`: the service."""

from __future__ import annotations

from typing import Annotated

import typer

from dqmstream.cli import output
from dqmstream.cli.options import BROKER, LEARNER, NEW_ARCHIVE, Json, finite, show, with_settings
from dqmstream.settings import MAX_WAIT_S, Settings


@with_settings("archive", "state", *BROKER, *NEW_ARCHIVE, "accept_others", "max_events", "name", *LEARNER, "idle_s")
def consume(
    settings: Settings,
    no_learn: Annotated[bool, typer.Option("--no-learn", help="only file, do not learn")] = False,
    until_idle: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=MAX_WAIT_S,
            callback=finite,
            help="end when nothing came for so many seconds and nothing is left to learn",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """The service: file what comes, once and only once, and learn runs as they become complete. SIGTERM drains and ends."""
    from dqmstream.service.consume import consume_topic

    with output.bars() as progress:
        result = consume_topic(
            settings,
            learn=not no_learn,
            until_idle_s=until_idle,
            progress=output.consume_bar(progress),
        )
    show(result, as_json, output.describe_consumed(result))
    if code := result["exit_code"]:
        raise typer.Exit(code)
