"""`dqmstream learn` and `dqmstream replay`: one learner, beside a stream or over archived runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dqmstream.cli import output
from dqmstream.cli.options import LEARNER, Json, show, with_settings
from dqmstream.lumisection import MAX_NUMBER
from dqmstream.settings import MAX_COUNT, Settings, from_json


@with_settings("archive", "state", "name", *LEARNER, "idle_s")
def learn(
    settings: Settings,
    follow: Annotated[bool, typer.Option("--follow", help="keep learning as runs become complete, until SIGTERM")] = False,
    again: Annotated[
        list[int] | None,
        typer.Option(
            "--again",
            min=1,
            max=MAX_NUMBER,
            help="learn this run once more, with lumisections that were filed late (see `status`); repeatable",
        ),
    ] = None,
    parent: Annotated[int | None, typer.Option("--parent", min=1, max=MAX_COUNT, hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Learn every complete run of the archive that is not learnt yet. `consume` starts the same learner by itself."""
    from dqmstream.service.learn import learn_archive

    if parent is not None:
        settings = from_json(sys.stdin.read())
    result = learn_archive(settings, follow=follow, parent=parent, again=again or ())
    show(result, as_json, describe_results(result))


@with_settings("archive", "state", *LEARNER)
def replay(
    settings: Settings,
    ledger: Annotated[
        Path | None, typer.Option(help="ledger.jsonl of another learner: take its order of runs and its snapshots")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the last replay of this strategy and seed")] = False,
    as_json: Json = False,
) -> None:
    """Learn archived runs offline: in ascending order, or in the order of a ledger. No broker is needed."""
    from dqmstream.service.learn import replay_archive

    with output.bars() as progress:
        kept = output.bar_callback(progress, f"replay {settings.strategy}")
        result = replay_archive(settings, ledger=ledger, resume=resume, progress=kept)
    show(result, as_json, describe_results(result))


def describe_results(result: dict[str, Any]) -> Table:
    """A table of the learner and the baselines that ran beside it. last 8: accuracy by the last 8 lumisections."""
    if result.get("task") == "labels":
        return _describe_labels(result)
    runs = len(set(result["runs"]))
    rows = [[
        result["strategy"], result["average_accuracy"], _last_8(result), result["average_auc"], result["forgetting"],
        f"{result['memory_bytes'] / 1000:.0f}", f"{result['seconds']:.1f}",
    ]]  # fmt: skip
    for name, accuracy in result["baselines"].items():
        if name != result["strategy"]:
            last_8 = _last_8(result["baseline_figures"][name])
            rows.append([name, accuracy, last_8, result["baselines_auc"][name], result["baselines_forgetting"][name], "-", "-"])
    chance = 1 / runs if runs else None
    rows.append(["chance", chance, chance, 0.5, None, "-", "-"])
    columns = ["strategy", "accuracy", "last 8", "AUC", "forgetting", "memory kB", "seconds"]
    windows = result["prequential"]
    on_arrival = (
        f"; {windows['windows']} windows on arrival: accuracy {output.number(windows['accuracy'])}, "
        f"always naming the run known last {output.number(windows['no_change'])}"
        if windows
        else ""
    )
    short = (
        f"; {result['short_runs']} runs have fewer than 10 test lumisections and count as much as the others: by lumisection "
        f"the accuracy is {output.number(result['average_accuracy_by_lumisection'])}"
        if result["short_runs"]
        else ""
    )
    return output.table(f"{runs} runs, seed {result['seed']}{on_arrival}{short}", columns, rows)


def _last_8(figures: dict[str, Any]) -> float | None:
    """Accuracy where the last 8 lumisections name the run."""
    found: float | None = figures["by_last"]["8"]["average_accuracy"]
    return found


def _describe_labels(result: dict[str, Any]) -> Table:
    """A table of a learner of good and faulty lumisections, and of the closed forms beside it."""
    found = {result["strategy"]: result, **result["baseline_figures"]}
    rows = [
        [
            name, figures["average_accuracy"], figures["average_auc"], figures["forgetting_auc"],
            (figures["calibration"] or {}).get("ece"),
        ]
        for name, figures in found.items()
    ]  # fmt: skip
    of = result["lumisections"]
    title = (
        f"{len(result['periods'])} periods of {len(result['runs'])} runs, seed {result['seed']}: "
        f"{of['good']} lumisections good, {of['faulty']} faulty, {of['unlabelled']} without a label"
    )
    return output.table(title, ["strategy", "accuracy", "AUC", "forgetting of AUC", "ECE"], rows)
