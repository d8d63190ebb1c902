"""Commands that take their options in groups: a group is a dataclass whose fields are the options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """The command that typer makes of a function whose parameters are groups: its options are the fields of all groups.

    Every field has a default, and its annotation is that of a typer option.
    """
    groups = {name: get_type_hints(function)[name] for name in inspect.signature(function).parameters}

    def command(**given: Any) -> None:
        filled = {name: group(**{field.name: given[field.name] for field in fields(group)}) for name, group in groups.items()}
        function(**filled)

    options = []
    for group in groups.values():
        types = get_type_hints(group, include_extras=True)
        for field in fields(group):
            parameter = inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
            )
            options.append(parameter)
    command.__name__, command.__doc__, command.__module__ = function.__name__, function.__doc__, function.__module__
    command.__annotations__ = {option.name: option.annotation for option in options}
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # typer reads it in place of **given
    return command
