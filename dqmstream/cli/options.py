"""The options that several commands share, each written once, and how a command shows its result."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from dqmstream.cli import output
from dqmstream.cli.terminal import tell

MAX_LENGTH = 10_000_000
"""Of a run, in lumisections or in rows made of them."""
MAX_RUNS = 100_000
"""Of a simulated stream."""
MAX_PROCESSES = 1024
LEAST_RATE, MAX_RATE = 1e-6, 0.5
"""Of a share of false alarms, or of false discoveries."""


def finite(value: float | None) -> float | None:
    """The value of an option; bounds let NaN pass. Raises BadParameter for it."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


Archive = Annotated[Path | None, typer.Option("--archive", help="folder of the archive", show_default=False)]
State = Annotated[Path | None, typer.Option("--state", help="folder of the learners' state (default: ARCHIVE.state)")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of stdout")]
Bootstrap = Annotated[str | None, typer.Option("--bootstrap", help="host:port of the broker", show_default=False)]
Topic = Annotated[str | None, typer.Option("--topic", help="Kafka topic of the data", show_default=False)]
LetterTopic = Annotated[
    str | None, typer.Option("--dead-letter-topic", help="for what cannot be stored (default: TOPIC.deadletter)")
]
Strategy = Annotated[str | None, typer.Option("--strategy", help="naive, replay, er_ace, der, agem, lwf, ewc, cumulative, joint, statistical_replay, hybrid, cnn, statistical, slda, ridge, logistic, gain_map, naive_bayes, ring_means, or default: hybrid")]  # fmt: skip # noqa: E501
Recipe = Annotated[Path | None, typer.Option("--recipe", help="TOML or JSON file of changes to the strategy's recipe (dqmstream/learners/networks/recipe.py)")]  # fmt: skip # noqa: E501
Set = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, a change to the recipe, as in steps=32; more than once")]  # fmt: skip # noqa: E501
Reference = Annotated[Path | None, typer.Option("--reference", help="file of `dqmstream reference` (default: the first run is the reference)")]  # fmt: skip # noqa: E501
Seed = Annotated[int | None, typer.Option("--seed", help="seed of the learner (default: 0)")]
Memory = Annotated[int | None, typer.Option("--memory-bytes", help="kept of past runs, in all (default: 1000000)")]
Samples = Annotated[int | None, typer.Option("--evaluation-samples", help="lumisections scored at an evaluation, in all (default: 6000)")]  # fmt: skip # noqa: E501
Watch = Annotated[int | None, typer.Option("--watch-samples", help="lumisections scored in the course of each training, for the stability gap; 400 at least (default: 0, none)")]  # fmt: skip # noqa: E501
Window = Annotated[int | None, typer.Option("--window", help="learn from a run while it goes on, so many lumisections at a time (default: 0, when it is complete)")]  # fmt: skip # noqa: E501
LabelDelay = Annotated[int | None, typer.Option("--label-delay", help="windows that pass until it is known of which run one was (default: 1)")]  # fmt: skip # noqa: E501
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of the learner (default: 1)")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda (default: auto)")]
Name = Annotated[str | None, typer.Option("--name", help="the learner's folder in the state (default: live)")]
Idle = Annotated[float | None, typer.Option("--idle-s", help="a run without a stop is complete after so many seconds without news (default: 300)")]  # fmt: skip # noqa: E501
Dtype = Annotated[str | None, typer.Option("--dtype", help="of a new archive: float32, or uint16 for whole counts (default: float32)")]  # fmt: skip # noqa: E501
Depths = Annotated[int | None, typer.Option("--depths", help="of a new archive, 1 to 7 (default: 1)")]
Source = Annotated[str | None, typer.Option("--source", help="dataset and monitoring element of a new archive (default: what 16 lumisections agree on)")]  # fmt: skip # noqa: E501
MaxEvents = Annotated[int | None, typer.Option("--max-events", help="most events that a lumisection can have: larger counts are refused, and any above its n_events (default: 3000000)")]  # fmt: skip # noqa: E501
Interpolated = Annotated[bool, typer.Option("--interpolated", help="rows were interpolated, as in the published files")]
Stream = Annotated[str, typer.Option(help="null, moderate, small, structured, year, tracks or pair")]


def show(result: dict[str, Any], as_json: bool, *readable: Any) -> None:
    """Print a result for a program, or its readable parts (text, tables) for a reader."""
    if as_json:
        output.print_json(result)
        return
    for part in readable:
        tell(output.out, part)
