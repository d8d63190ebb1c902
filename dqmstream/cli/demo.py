"""`dqmstream demo`: simulated runs through the whole chain, with a report at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dqmstream.cli import output
from dqmstream.cli.options import MAX_LENGTH, MAX_RUNS, Json, Stream, show, with_settings
from dqmstream.settings import MAX_SEED, Settings


@with_settings("bootstrap")
def demo(
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="folder for all files; an older demo in it is deleted")] = Path("demo-out"),
    stream: Stream = "moderate",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="seed of stream and learner")] = 0,
    runs: Annotated[int, typer.Option(min=2, max=MAX_RUNS, help="number of runs")] = 6,
    lumisections: Annotated[int, typer.Option(min=180, max=MAX_LENGTH, help="lumisections in each run")] = 400,
    kafka: Annotated[bool, typer.Option("--kafka", help="stream through the Kafka broker at --bootstrap")] = False,
    as_json: Json = False,
) -> None:
    """Simulate, import, stream, learn, replay and report, all in one."""
    from dqmstream.cli.demonstration import run_demo

    began = time.monotonic()
    result = run_demo(out, stream, seed, runs, lumisections, settings.need("bootstrap") if kafka else None)
    result["seconds"] = round(time.monotonic() - began, 1)
    show(result, as_json, *describe_demo(result))


def describe_demo(result: dict[str, Any]) -> list[Any]:
    """A table of the learners, what was filed, and where the report is."""
    rows = [
        [name, one["average_accuracy"], one["by_last"]["8"]["average_accuracy"], one["average_auc"], one["forgetting"]]
        for name, one in result["learners"].items()
    ]
    live = next(iter(result["learners"].values()))
    for name, accuracy in live["baselines"].items():
        last_8 = live["baseline_figures"][name]["by_last"]["8"]["average_accuracy"]
        rows.append([name, accuracy, last_8, live["baselines_auc"][name], live["baselines_forgetting"][name]])
    chance = 1 / len(live["runs"])
    rows.append(["chance", chance, chance, 0.5, None])
    title = f"stream {result['stream']}, {len(live['runs'])} runs, seed {result['seed']}"
    return [
        output.table(title, ["", "accuracy", "last 8", "AUC", "forgetting"], rows),
        f"{result['consumed']['rows']} lumisections filed, {result['consumed']['dead']} dead letters, {result['seconds']} s",
        f"report: {result['report']}",
    ]
