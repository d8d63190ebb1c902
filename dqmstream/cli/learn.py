"""`dqmstream learn` and `dqmstream replay`: the same learner, beside a stream and over what is archived."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dqmstream.cli import output
from dqmstream.cli.options import LEARNER, Json, show, with_settings
from dqmstream.lumisection import MAX_NUMBER
from dqmstream.settings import MAX_COUNT, Settings, from_json


@with_settings("archive", "state", "name", *LEARNER, "idle_s")
def learn(
    settings: Settings,
    follow: Annotated[bool, typer.Option("--follow", help="go on as runs become complete, until SIGTERM")] = False,
    again: Annotated[
        list[int] | None,
        typer.Option(
            "--again",
            min=1,
            max=MAX_NUMBER,
            help="learn this run once more with what came late (several times for several); see status",
        ),
    ] = None,
    parent: Annotated[int | None, typer.Option("--parent", min=1, max=MAX_COUNT, hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """The learner alone, as `consume` starts it: learn every complete run of the archive that is not learnt yet."""
    from dqmstream.service.learn import learn_archive

    if parent is not None:
        settings = from_json(sys.stdin.read())
    result = learn_archive(settings, follow=follow, parent=parent, again=again or ())
    show(result, as_json, output.describe_results(result))


@with_settings("archive", "state", *LEARNER)
def replay(
    settings: Settings,
    ledger: Annotated[Path | None, typer.Option(help="order and snapshots of another learner's ledger.jsonl")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the last replay stopped")] = False,
    as_json: Json = False,
) -> None:
    """The same learner offline, over archived runs in ascending order or in that of a ledger; no broker."""
    from dqmstream.service.learn import replay_archive

    with output.bars() as progress:
        kept = output.bar_callback(progress, f"replay {settings.strategy}")
        result = replay_archive(settings, ledger=ledger, resume=resume, progress=kept)
    show(result, as_json, output.describe_results(result))
