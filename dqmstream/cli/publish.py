"""`dqmstream publish`: archived runs to Kafka, as the data acquisition would send them."""

from __future__ import annotations

from typing import Annotated

import typer

from dqmstream.cli import output
from dqmstream.cli.options import Json, finite, show, with_settings
from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER
from dqmstream.settings import Settings


@with_settings("archive", "bootstrap", "topic")
def publish(
    settings: Settings,
    runs: Annotated[list[int] | None, typer.Option("--run", max=MAX_NUMBER, help="only this run; repeatable")] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e6, callback=finite, help="lumisections a second (default: as fast as possible)"),
    ] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="one lumisection every 23.31 s, as in data taking")] = False,
    create: Annotated[bool, typer.Option("--create", help="create the topic")] = False,
    partitions: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="with --create: number of partitions (default: 1)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send archived runs to Kafka as the data acquisition would: run start, lumisections, run stop."""
    from dqmstream.service.publish import publish_runs

    if rate and realtime:
        raise InputError("--rate and --realtime exclude each other")
    if partitions and not create:
        raise InputError("--partitions is for a topic that is created: give --create too")
    with output.bars() as progress:
        kept = output.bar_callback(progress, "publish")
        result = publish_runs(settings, runs, rate, realtime, (partitions or 1) if create else None, kept)
    show(result, as_json, f"{result['lumisections']} lumisections of {len(result['runs'])} runs sent to {result['topic']}")
