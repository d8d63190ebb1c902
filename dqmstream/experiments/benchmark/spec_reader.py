"""Reading what a benchmark computes, from a TOML file of tables or from options of the command line.

A file has defaults at its top, models by name, and a section for each table, in which every key can be set:

    seeds = [100]
    recipe = {steps = 32}

    [models.vit]
    model = "vit"

    [[table]]
    name = "models"
    streams = ["small", "structured"]
    strategies = ["replay"]
    models = ["vit"]

Options give the same keys, for a single table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dqmstream.errors import InputError
from dqmstream.experiments.benchmark.spec import Benchmark, TableSpec, in_key


def benchmark_of(values: Mapping[str, Any], where: str) -> Benchmark:
    """The benchmark that these keys describe. where: the file for error messages, "" for options.

    Raises InputError, which names the key.
    """
    defaults = {key: value for key, value in values.items() if key not in ("models", "table")}
    models, sections = values.get("models", {}), values.get("table", [{}])
    if not isinstance(models, dict) or not all(isinstance(changes, dict) for changes in models.values()):
        raise InputError(f'{where}, models: give each model a section, as in [models.vit] with model = "vit"')
    if not isinstance(sections, list) or not all(isinstance(section, dict) for section in sections):
        raise InputError(f"{where}, table: give each table a section [[table]]")
    tables = []
    for number, section in enumerate(sections, 1):
        name = section.get("name", f"table-{number}" if len(sections) > 1 else "benchmark")
        with in_key(f"{where}, table {name}" if "table" in values else where):
            tables.append(_table_spec({**defaults, **section, "name": name}, models))
    with in_key(where):
        return Benchmark(tuple(tables)).checked()


def _table_spec(values: dict[str, Any], models: Mapping[str, Mapping[str, Any]]) -> TableSpec:
    known = [entry.name for entry in fields(TableSpec)]
    if unknown := sorted(values.keys() - set(known)):
        raise InputError(f"unknown key {', '.join(unknown)}; the keys are {', '.join(known)}, [models.NAME] and [[table]]")
    if isinstance(values.get("memory_bytes"), int):
        values["memory_bytes"] = [values["memory_bytes"]]
    chosen = values.get("models", [])
    if not isinstance(chosen, list) or (strange := [label for label in chosen if label not in models]):
        shown = repr(strange[0]) if isinstance(chosen, list) else repr(chosen)
        raise InputError(f"models: {shown} is not a section [models.NAME]; the sections are {', '.join(models) or 'none'}")
    values["models"] = {label: models[label] for label in chosen}
    try:
        return TypeAdapter(TableSpec).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg']} (got {first['input']!r})") from error
