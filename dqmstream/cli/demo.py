"""`dqmstream demo`: simulated runs through the whole chain, with a report at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dqmstream.cli import output
from dqmstream.cli.options import MAX_LENGTH, MAX_RUNS, Json, Stream, show, with_settings
from dqmstream.settings import MAX_SEED, Settings


@with_settings("bootstrap")
def demo(
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="folder for everything, made anew")] = Path("demo-out"),
    stream: Stream = "moderate",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="seed of stream and learner")] = 0,
    runs: Annotated[int, typer.Option(min=2, max=MAX_RUNS, help="number of runs")] = 6,
    lumisections: Annotated[int, typer.Option(min=180, max=MAX_LENGTH, help="lumisections in each run")] = 400,
    kafka: Annotated[bool, typer.Option("--kafka", help="through the broker at --bootstrap")] = False,
    as_json: Json = False,
) -> None:
    """Simulate, import, stream, learn, replay and report, in one go."""
    from dqmstream.cli.demonstration import run_demo

    began = time.monotonic()
    result = run_demo(out, stream, seed, runs, lumisections, settings.need("bootstrap") if kafka else None)
    result["seconds"] = round(time.monotonic() - began, 1)
    show(result, as_json, *output.describe_demo(result))
