"""Output of the command line: results on stdout; progress, logs and errors on stderr."""

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
"""Width in columns if the output is no terminal."""

out = Console(highlight=False, width=None if is_terminal(sys.stdout) else PLAIN_WIDTH)
err = Console(stderr=True, highlight=False, width=None if is_terminal(sys.stderr) else PLAIN_WIDTH)


def configure_logs(verbose: bool = False) -> None:
    """Write log events to stderr, one line each; in colour on a terminal unless NO_COLOR or TERM=dumb is set."""
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
    """Print one JSON object as the last line of stdout. NaN and infinity become null."""
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
    """Progress bars on stderr. If stderr is no terminal they are printed once, at the end."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=False) as progress:
        yield progress


def bar_callback(progress: Progress, description: str) -> Callable[..., None]:
    """A function (done, total, description) that updates one progress bar, which appears at its first call."""
    tasks: list[TaskID] = []

    def update(done: int, total: int | None, now: str = description) -> None:
        if not tasks:
            tasks.append(progress.add_task(now, total=total))
        progress.update(tasks[0], completed=done, total=total, description=now)

    return update


def consume_bar(progress: Progress, total: int | None = None) -> Callable[[Any, dict[str, Any]], None]:
    """A function (counts, status of the learner) that updates one progress bar for ingest and learner."""
    tasks: list[TaskID] = []

    def update(counts: Any, learner: dict[str, Any]) -> None:
        if not tasks:
            tasks.append(progress.add_task("", total=total))
        progress.update(tasks[0], completed=counts.rows, description=consume_line(counts, learner))

    return update


def consume_line(counts: Any, learner: dict[str, Any]) -> str:
    """One line with the state of ingest and learner."""
    learnt = learner.get("experiences_learnt", 0)
    behind = learner.get("experiences_behind", 0)
    accuracy = learner.get("average_accuracy")
    known = f", accuracy {accuracy:.3f}" if accuracy is not None else ""
    dead = f", {counts.dead} dead letters" if counts.dead else ""
    return f"consume: {learnt} runs learnt, {behind} behind{known}{dead}; lumisections filed"


def probability(value: float) -> str:
    """A probability to print."""
    return f"{value:.1e}" if value > 0 else "<1e-300"


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Table:
    """A table to print. The first column is aligned left, the others right."""
    made = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*(number(cell) if not isinstance(cell, str) else cell for cell in row))
    return made


def number(value: Any) -> str:
    """A number to print; a dash for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


SHOWN_CHANGES = 20
"""Number of changed channels that a table shows; files and --json hold all."""
