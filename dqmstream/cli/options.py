"""The options of the command line: those of settings, made from the settings model, and others that commands share."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dqmstream.cli import output
from dqmstream.cli.terminal import tell
from dqmstream.settings import Settings, load_settings, recipe_flags

MAX_LENGTH = 10_000_000
"""Largest number of lumisections (or of rows interpolated between them) in a run."""
MAX_RUNS = 100_000
"""Largest number of runs in a simulated stream."""
MAX_PROCESSES = 1024
LEAST_RATE, MAX_RATE = 1e-6, 0.5
"""Bounds of a rate of false alarms, or of false discoveries."""

BROKER = ("bootstrap", "topic", "group", "instance", "dead_letter_topic", "accept_gap")
NEW_ARCHIVE = ("dtype", "depths", "source")
LEARNER = (
    "task", "strategy", "recipe", "reference", "seed", "memory_bytes", "evaluation_samples", "watch_samples", "window",
    "label_delay", "threads", "device",
)  # fmt: skip
"""Settings of the learner, but for its name and for when a run is complete."""

_PANELS = {
    **dict.fromkeys(BROKER, "Broker"),
    **dict.fromkeys((*NEW_ARCHIVE, "max_events", "accept_others"), "What is stored"),
    **dict.fromkeys((*LEARNER, "name", "idle_s"), "Learner"),
}
"""Heading in the help of a command, by setting. Settings without one stand under "Options"."""

RECIPE_HELP = "TOML or JSON file with changes to the recipe of the strategy (docs/learner.md)"
SET_HELP = "NAME=VALUE, a change to the recipe, as in steps=32; repeatable"


def finite(value: float | None) -> float | None:
    """The value of an option. Raises BadParameter for NaN, which passes typer's bounds."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def help_of(setting: str) -> str:
    """The help of the option of a setting, with the setting's default."""
    field = Settings.model_fields[setting]
    if field.default is None or field.annotation is bool:
        return f"{field.description}"
    default = f"{field.default:g}" if isinstance(field.default, float) else field.default
    return f"{field.description} (default: {default})"


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command with an option for each of these settings, in place of its parameter `settings`.

    The command is called with `settings` as they follow from its options, the environment, the TOML file and the defaults.
    The setting `recipe` has two options: --recipe FILE and --set NAME=VALUE.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command).parameters.items():
            if name == "settings":
                parameters += [made for setting in names for made in _options_of(setting)]
            else:
                parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

        def called(**given: Any) -> None:
            flags = {name: given.pop(name) for name in names}
            if "recipe" in names:
                flags["recipe"] = recipe_flags(flags["recipe"], given.pop("set_"))
            # An option without a value is False when it is not given, which must not override the environment.
            flags = {name: None if value is False else value for name, value in flags.items()}
            command(settings=load_settings(**flags), **given)

        called.__name__, called.__doc__, called.__module__ = command.__name__, command.__doc__, command.__module__
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return decorate


def _options_of(setting: str) -> list[inspect.Parameter]:
    """The parameters by which typer makes the options of a setting."""
    if setting == "recipe":
        return [
            _option("recipe", Path | None, "--recipe", RECIPE_HELP, _PANELS[setting]),
            _option("set_", list[str] | None, "--set", SET_HELP, _PANELS[setting]),
        ]
    annotation = Settings.model_fields[setting].annotation
    given = typing.get_args(annotation) if typing.get_origin(annotation) is not Literal else ()
    kinds = [kind for kind in (given or (annotation,)) if kind is not type(None)]
    kind: Any = str if typing.get_origin(kinds[0]) is Literal else kinds[0]
    flag = f"--{setting.replace('_', '-')}"
    return [_option(setting, bool if kind is bool else kind | None, flag, help_of(setting), _PANELS.get(setting))]


def _option(name: str, kind: Any, flag: str, text: str, panel: str | None) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(flag, help=text, rich_help_panel=panel, show_default=False)]
    default = False if kind is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


Archive = Annotated[Path | None, typer.Option("--archive", help=help_of("archive"), show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of stdout")]
Recipe = Annotated[Path | None, typer.Option("--recipe", help=RECIPE_HELP)]
Set = Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)]
Samples = Annotated[int | None, typer.Option("--evaluation-samples", help=help_of("evaluation_samples"))]
Device = Annotated[str | None, typer.Option("--device", help=help_of("device"))]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, max=MAX_PROCESSES, help="local processes of one thread each (default: one per processor)")  # noqa: E501
]  # fmt: skip
Scheduler = Annotated[
    str | None, typer.Option("--dask", help="host:port of a Dask scheduler, whose workers compute", show_default=False)
]
Interpolated = Annotated[bool, typer.Option("--interpolated", help="rows were interpolated, as in the published files")]
Stream = Annotated[
    str,
    typer.Option(
        help="null, moderate, small, structured, year, tracks, pair; campaign, overdispersed, threshold, patterns, transient, "
        "mixture, or one of these six with -null, its null twin"
    ),
]


def show(result: dict[str, Any], as_json: bool, *readable: Any) -> None:
    """Print a result: as JSON for a program, or its readable parts (text, tables) for a reader."""
    if as_json:
        output.print_json(result)
        return
    for part in readable:
        tell(output.out, part)
