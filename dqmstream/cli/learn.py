"""`dqmstream learn` and `dqmstream replay`: the same learner, beside a stream and over what is archived."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dqmstream.cli import output
from dqmstream.cli.options import (
    Archive,
    Device,
    Idle,
    Json,
    LabelDelay,
    Memory,
    Name,
    Recipe,
    Reference,
    Samples,
    Seed,
    Set,
    State,
    Strategy,
    Threads,
    Watch,
    Window,
    show,
)
from dqmstream.lumisection import MAX_NUMBER
from dqmstream.settings import MAX_COUNT, load_settings, recipe_flags


def learn(
    archive: Archive = None,
    state: State = None,
    follow: Annotated[bool, typer.Option("--follow", help="go on as runs become complete, until SIGTERM")] = False,
    name: Name = None,
    strategy: Strategy = None,
    recipe: Recipe = None,
    set_: Set = None,
    reference: Reference = None,
    seed: Seed = None,
    memory_bytes: Memory = None,
    idle_s: Idle = None,
    evaluation_samples: Samples = None,
    watch_samples: Watch = None,
    window: Window = None,
    label_delay: LabelDelay = None,
    threads: Threads = None,
    device: Device = None,
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
    from dqmstream.service.commands import learn_archive

    settings = load_settings(
        archive=archive, state=state, name=name, strategy=strategy,
        recipe=recipe_flags(recipe, set_), reference=reference, seed=seed, memory_bytes=memory_bytes, idle_s=idle_s,
        evaluation_samples=evaluation_samples, watch_samples=watch_samples, window=window, label_delay=label_delay,
        threads=threads, device=device,
    )  # fmt: skip
    result = learn_archive(settings, follow=follow, parent=parent, again=again or ())
    show(result, as_json, output.describe_results(result))


def replay(
    archive: Archive = None,
    state: State = None,
    ledger: Annotated[Path | None, typer.Option(help="order and snapshots of another learner's ledger.jsonl")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the last replay stopped")] = False,
    strategy: Strategy = None,
    recipe: Recipe = None,
    set_: Set = None,
    reference: Reference = None,
    seed: Seed = None,
    memory_bytes: Memory = None,
    evaluation_samples: Samples = None,
    watch_samples: Watch = None,
    window: Window = None,
    label_delay: LabelDelay = None,
    threads: Threads = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """The same learner offline, over archived runs in ascending order or in that of a ledger; no broker."""
    from dqmstream.service.commands import replay_archive

    settings = load_settings(
        archive=archive, state=state, strategy=strategy, recipe=recipe_flags(recipe, set_), reference=reference, seed=seed,
        memory_bytes=memory_bytes, evaluation_samples=evaluation_samples, watch_samples=watch_samples,
        window=window, label_delay=label_delay, threads=threads, device=device,
    )  # fmt: skip
    with output.bars() as progress:
        kept = output.bar_callback(progress, f"replay {settings.strategy}")
        result = replay_archive(settings, ledger=ledger, resume=resume, progress=kept)
    show(result, as_json, output.describe_results(result))
