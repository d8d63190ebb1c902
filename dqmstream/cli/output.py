"""How the command line speaks: results on stdout, everything else on stderr, errors in one line."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from dqmstream.cli.terminal import is_terminal
from dqmstream.lumisection import utf8

PLAIN_WIDTH = 120
"""Columns where the output is no terminal."""

out = Console(highlight=False, width=None if is_terminal(sys.stdout) else PLAIN_WIDTH)
err = Console(stderr=True, highlight=False, width=None if is_terminal(sys.stderr) else PLAIN_WIDTH)


def configure_logs(verbose: bool = False) -> None:
    """Send structlog's events to stderr, one line each, in colour on a terminal unless NO_COLOR or TERM=dumb says otherwise."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=err.color_system is not None and not err.no_color),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if verbose else logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def print_json(result: dict[str, Any]) -> None:
    """One object, the last line of stdout. NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_plain(result), allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return utf8(value) if isinstance(value, str) else value


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars on stderr; on something that is no terminal they are printed once, at the end."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=False) as progress:
        yield progress


def bar_callback(progress: Progress, description: str) -> Callable[..., None]:
    """A function (done, total, description as it is by now) that keeps one bar, shown from its first call on."""
    tasks: list[TaskID] = []

    def update(done: int, total: int | None, now: str = description) -> None:
        if not tasks:
            tasks.append(progress.add_task(now, total=total))
        progress.update(tasks[0], completed=done, total=total, description=now)

    return update


def consume_bar(progress: Progress, total: int | None = None) -> Callable[[Any, dict[str, Any]], None]:
    """A function (counts, learner's status) that keeps one bar for ingest and learner."""
    tasks: list[TaskID] = []

    def update(counts: Any, learner: dict[str, Any]) -> None:
        if not tasks:
            tasks.append(progress.add_task("", total=total))
        progress.update(tasks[0], completed=counts.rows, description=consume_line(counts, learner))

    return update


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Table:
    """A table for reading; the first column is left-aligned, numbers right."""
    made = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*(number(cell) if not isinstance(cell, str) else cell for cell in row))
    return made


def number(value: Any) -> str:
    """A number for reading; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def consume_line(counts: Any, learner: dict[str, Any]) -> str:
    """One line that says how ingest and learner stand."""
    learnt = learner.get("experiences_learnt", 0)
    behind = learner.get("experiences_behind", 0)
    accuracy = learner.get("average_accuracy")
    known = f", accuracy {accuracy:.3f}" if accuracy is not None else ""
    dead = f", {counts.dead} dead letters" if counts.dead else ""
    return f"consume: {learnt} runs learnt, {behind} behind{known}{dead}; lumisections filed"


def describe_imported(result: dict[str, Any]) -> list[Any]:
    """A line a file: what was taken of it; then what was dropped and why, and what else is to be known."""
    known = "known, nothing changed"
    if result["kind"] == "images":
        rows = [
            [f["name"], f["rows"], "x".join(map(str, f["shape"])), ", ".join(f["classes"]), known if f["known"] else ""]
            for f in result["files"]
        ]
        return [table("imported", ["file", "images", "shape", "classes", "note"], rows), *result["notes"]]
    rows = []
    for f in result["files"]:
        note = known if f["known"] else f"rounded by up to {f['rounding']:.2g} counts" if f["rounding"] else ""
        rows.append([f["name"], f["run"], f["lumisections"], f["rows"], f["duplicates"], f["revisions"], note])
    columns = ["file", "run", "lumisections", "filed", "duplicates", "revisions", "note"]
    parts: list[Any] = [table("imported", columns, rows)] if rows else []
    dropped = [[f["name"], f["run"], d["count"], d["what"], d["reason"]] for f in result["files"] for d in f["dropped"]]
    if dropped:
        parts.append(table("not taken", ["file", "run", "count", "of", "because"], dropped))
    parts += [f"run {f['run']}: {note}" for f in result["files"] for note in f["notes"]]
    parts += result["notes"]
    parts += [
        f"{label['kind']}: {label['name']} is version {label['version']}" + ("" if label["new"] else ", and was before")
        for label in result["labels"]
    ]
    return parts


def describe_consumed(result: dict[str, Any]) -> str:
    learner = result["learner"]
    learnt = f"; {len(learner['runs'])} runs learnt, accuracy {number(learner['average_accuracy'])}" if learner else ""
    left = f"; {result['waiting']} messages read and not filed, they will be read again" if result["waiting"] else ""
    failed = f"; the learner failed: {result['learner_error']}" if result["learner_error"] else ""
    return (
        f"{result['messages']} messages: {result['rows']} lumisections filed, {result['duplicates']} duplicates, "
        f"{result['revisions']} revisions, {result['dead']} dead letters in {result['seconds']:.1f} s{learnt}{left}{failed}"
    )


def describe_results(result: dict[str, Any]) -> Table:
    """The learner and the baselines that ran beside it."""
    runs = len(set(result["runs"]))
    rows = [[
        result["strategy"], result["average_accuracy"], result["average_auc"], result["forgetting"],
        f"{result['memory_bytes'] / 1000:.0f}", f"{result['seconds']:.1f}",
    ]]  # fmt: skip
    for name, accuracy in result["baselines"].items():
        if name != result["strategy"]:
            rows.append([name, accuracy, result["baselines_auc"][name], result["baselines_forgetting"][name], "-", "-"])
    rows.append(["chance", 1 / runs if runs else None, 0.5, None, "-", "-"])
    columns = ["strategy", "accuracy", "AUC", "forgetting", "memory kB", "seconds"]
    windows = result["prequential"]
    on_arrival = (
        f"; {windows['windows']} windows on arrival: accuracy {number(windows['accuracy'])}, "
        f"always naming the run known last {number(windows['no_change'])}"
        if windows
        else ""
    )
    return table(f"{runs} runs, seed {result['seed']}{on_arrival}", columns, rows)


def describe_status(result: dict[str, Any]) -> list[Any]:
    columns = ["run", "lumisections", "first", "last", "missing", "revisions", "duplicates", "complete"]
    runs = [[str(run[column]) for column in columns] for run in result["runs"]]
    kinds = ["feed", "partition", "first_offset", "next_offset", "rows", "duplicate", "dead", "hole", "gap"]
    feeds = [[str(feed[kind]) for kind in kinds] for feed in result["feeds"]]
    parts: list[Any] = [
        f"{result['archive']} ({result['archive_id']}): {result['lumisections']} lumisections of {len(runs)} runs, "
        f"{result['dtype']}, {result['depths']} depth(s), snapshot {result['snapshot']} of {result['committed']}",
        table("runs", columns, runs),
        table("feeds", [kind.replace("_", " ") for kind in kinds], feeds),
    ]
    if result["clock_behind_s"]:
        behind = f"Warning: the clock of this machine is {result['clock_behind_s']:.0f} s behind the newest commit"
        parts.insert(1, f"{behind}: the next one waits for it, or moves the times of those before back")
    if learners := result["learners"]:
        shown = {
            "strategy": "strategy", "condition": "condition", "learnt": "experiences_learnt", "behind": "experiences_behind",
            "last run": "last_run", "accuracy": "average_accuracy", "prequential": "prequential_accuracy",
            "reference": "reference", "written": "written",
        }  # fmt: skip
        rows = [[name, *(one.get(key) for key in shown.values())] for name, one in learners.items()]
        parts.append(table("learners", ["name", *shown], rows))
        parts += [f"learner {name}: {told}" for name, one in learners.items() if (told := _trouble(one))]
        parts += [
            f"learner {name}: {lumisections} lumisections of run {run} came after it was learnt and are not learnt: "
            f"`dqmstream learn --again {run}` learns it once more, while no other process learns"
            for name, one in learners.items()
            for run, lumisections in one.get("late_lumisections", {}).items()
        ]
    return parts


def _trouble(learner: dict[str, Any]) -> str:
    """What is wrong with a learner, in a sentence; "" where nothing is."""
    if learner.get("condition") == "failed":
        return f"it failed: {learner['error']}"
    if learner.get("condition") == "hangs":
        return f"it runs, but has shown no sign of life for {learner['silent_s']:.0f} s; `consume` kills and restarts its own"
    if learner.get("condition") == "killed":
        return "it was killed, and does not run"
    return ""


def describe_demo(result: dict[str, Any]) -> list[Any]:
    rows = [[name, one["average_accuracy"], one["average_auc"], one["forgetting"]] for name, one in result["learners"].items()]
    live = next(iter(result["learners"].values()))
    for name, accuracy in live["baselines"].items():
        rows.append([name, accuracy, live["baselines_auc"][name], live["baselines_forgetting"][name]])
    rows.append(["chance", 1 / len(live["runs"]), 0.5, None])
    title = f"stream {result['stream']}, {len(live['runs'])} runs, seed {result['seed']}"
    return [
        table(title, ["", "accuracy", "AUC", "forgetting"], rows),
        f"{result['consumed']['rows']} lumisections filed, {result['consumed']['dead']} dead letters, {result['seconds']} s",
        f"report: {result['report']}",
    ]


SHOWN_CHANGES = 20
"""Lines of a table of what changed; files and --json hold all."""


def describe_comparison(result: dict[str, Any]) -> list[Any]:
    """Both AUC side by side with what they mean, then boxes and channels that changed."""
    rows = [
        [what, f"{auc['value']:.3f}", f"{auc['low']:.3f} to {auc['high']:.3f}"]
        for what, auc in (("channels, under their conditions", result["auc"]), ("luminosity alone", result["luminosity_auc"]))
        if auc
    ]
    interval = f"{result['confidence']:.0%} interval"
    title = f"{result['b']['name']} against {result['a']['name']}"
    parts: list[Any] = [
        table(title, ["told apart by", "AUC", interval], rows) if rows else title,
        result["verdict"],
        *(f"Warning: {warning}" for warning in result["warnings"]),
    ]
    if result["boxes"]:
        found = [[f"RBX {box['rbx']:+d}", str(box["channels"]), *_change(box)] for box in result["boxes"]]
        parts.append(table("readout boxes that moved together", ["box", "channels", *_CHANGE], found[:SHOWN_CHANGES]))
    if result["changed"]:
        found = [
            [f"{c['ieta']}, {c['iphi']}, {c['depth']}", f"{c['rbx']:+d}", *_change(c), c["state"].replace("changed", "")]
            for c in result["changed"]
        ]
        parts.append(table("channels that changed", ["ieta, iphi, depth", "RBX", *_CHANGE, ""], found[:SHOWN_CHANGES]))
    moved = {box["rbx"] for box in result["boxes"]}
    inside = sum(c["rbx"] in moved for c in result["changed"])
    left = max(len(result["changed"]) - SHOWN_CHANGES, 0)
    parts.append(
        f"{len(result['changed'])} of {result['channels_tested']} channels"
        + (f" ({inside} of them in boxes that moved)" if inside else "")
        + f" and {len(result['boxes'])} of {result['boxes_tested']} readout boxes changed"
        + f", at a false-discovery rate of {result['rate']:g} each"
        + (f"; {left} more channels than are shown: --out and --json list all" if left else "")
    )
    parts.append(result["unseen"])
    if "files" in result:
        parts.append("written: " + ", ".join(result["files"]))
    return parts


def describe_flags(result: dict[str, Any]) -> list[Any]:
    """A line for each run, and the channels behind those that were flagged."""
    rows = [
        [
            str(one["run"]), "yes" if one["learnt"] else "no", str(one["lumisections"]), str(one["flagged"]),
            f"{one['median_score']:+.1f}", str(one["most_probable"]), f"{one['probability']:.2f}", str(len(one["channels"])),
            str(one["faulty"]), str(len(one["faults"])),
        ]
        for one in result["runs"]
    ]  # fmt: skip
    columns = ["run", "known", "lumisections", "flagged", "median score", "most probable", "probability", "channels"]
    columns += ["faulty", "failed"]
    parts: list[Any] = [table(f"flags, false alarms at {result['alarms']:g}", columns, rows)]
    for one in result["runs"]:
        if one["flagged"] and one["channels"]:
            found = [
                [
                    f"{c['ieta']}, {c['iphi']}, {c['depth']}", f"{c['pull']:+.1f}", _probability(c["p"]),
                    f"{c['expected']:.1f}", f"{c['seen']:.1f}",
                ]
                for c in one["channels"][:SHOWN_CHANGES]
            ]  # fmt: skip
            title = f"run {one['run']} against {one['against']}, {len(one['channels'])} channels"
            parts.append(table(title, ["ieta, iphi, depth", "pull", "p", "expected", "seen"], found))
        if one["faults"]:
            failed = [
                [f"{c['ieta']}, {c['iphi']}, {c['depth']}", *(str(c[name]) for name in ("lumisections", "first", "last"))]
                for c in one["faults"][:SHOWN_CHANGES]
            ]
            title = f"run {one['run']}, {len(one['faults'])} channels that failed in it"
            parts.append(table(title, ["ieta, iphi, depth", "lumisections", "first", "last"], failed))
    parts += [f"warning: {warning}" for warning in result["warnings"]]
    if "file" in result:
        parts.append(f"written: {result['file']}")
    return parts


_CHANGE = ["ratio", "error", "pull", "p", "q"]


def _change(found: dict[str, Any]) -> list[str]:
    ratio = "new" if math.isinf(found["ratio"]) else f"{found['ratio']:.4f}"
    error = "-" if math.isnan(found["ratio_error"]) else f"{found['ratio_error']:.4f}"
    return [ratio, error, f"{found['pull']:+.1f}", _probability(found["p"]), _probability(found["q"])]


def _probability(value: float) -> str:
    return f"{value:.1e}" if value > 0 else "<1e-300"
