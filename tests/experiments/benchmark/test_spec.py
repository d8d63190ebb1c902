"""A file or options describe tables, models and budgets; errors name the key, before anything is computed."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.benchmark.run import run_benchmark
from dqmstream.experiments.benchmark.spec import Benchmark, TableSpec
from dqmstream.experiments.benchmark.spec_reader import benchmark_of
from dqmstream.experiments.benchmark.text import title
from dqmstream.experiments.cells.runner import Workers

TEXT = """
seeds = [100]
runs = 3
lumisections = 200
memory_bytes = 1_000_000
recipe = {steps = 6, dim = 16, heads = 2, depth = 1, patch = [32, 36]}

[models.experts]
model = "moe_vit"

[models.wide]
model = "linear"
batch = 32

[[table]]
name = "learners"
title = "Strategies"
streams = ["small", "null"]
strategies = ["ideal", "gain_map", "replay", "cnn", "statistical"]
seeds = [100, 101]

[[table]]
name = "models"
streams = ["small"]
strategies = ["gain_map", "replay", "cnn"]
models = ["experts", "wide"]

[[table]]
name = "memory"
streams = ["small"]
strategies = ["gain_map", "statistical", "replay"]
memory_bytes = [30_000, 1_000_000]
"""


def read(text: str = TEXT) -> Benchmark:
    return benchmark_of(tomllib.loads(text), "spec.toml")


def test_a_file_names_several_tables_and_a_cell_in_two_of_them_is_one_cell() -> None:
    learners, models, memory = read().tables
    assert (learners.seeds, models.seeds, learners.runs, learners.memory_bytes) == ((100, 101), (100,), 3, (1_000_000,))
    labels = [[row.label for row in spec.rows()] for spec in (learners, models, memory)]
    assert labels[0] == ["ideal", "gain_map", "replay", "cnn", "statistical"]
    assert labels[1] == ["gain_map", "replay, experts", "replay, wide", "cnn"], "the cnn has its network whatever is asked for"
    assert labels[2] == ["gain_map", "statistical, 30 kB", "statistical, 1000 kB", "replay, 30 kB", "replay, 1000 kB"]
    cells = read().cells()
    assert len(cells) == len(set(cells)) == 2 * 2 * 5 + 1 + 2, "its own model named is the same cell as none"
    assert len({cell.name for cell in cells}) == len(cells)
    assert [spec.name for spec in read().only(["memory"]).tables] == ["memory"]
    with pytest.raises(InputError, match="no table 'other'"):
        read().only(["other"])


def test_the_tables_of_the_readme_are_a_benchmark_whose_cells_train_on_as_much() -> None:
    path = Path(__file__).parents[3] / "benchmarks" / "readme.toml"
    chosen = benchmark_of(tomllib.loads(path.read_text()), path.name)
    names = {spec.name for spec in chosen.tables}
    assert names == {"learners", "closed-forms", "outside", "others", "models", "memory", "two-runs"}
    assert {json.loads(cell.recipe)["steps"] for cell in chosen.cells() if cell.recipe} == {32}


def test_models_train_on_equally_many_lumisections_whatever_their_batch() -> None:
    _, models, _ = read().tables
    changes = {row.label: json.loads(row.recipe) for row in models.rows() if row.recipe}
    assert changes["replay, wide"]["steps"] == 12 and changes["replay, wide"]["batch"] == 32
    assert changes["replay, experts"]["steps"] == changes["cnn"]["steps"] == 6
    own = replace(models, compute="own", models={"wide": {"model": "linear", "steps": 9}})
    assert json.loads(own.rows()[1].recipe)["steps"] == 9


def test_models_train_with_equally_many_operations_on_request() -> None:
    _, models, _ = read().tables
    rows = {row.label: row for row in replace(models, compute="flops").rows()}
    steps = {label: json.loads(row.recipe)["steps"] for label, row in rows.items() if row.recipe}
    assert steps["replay, experts"] == 6
    assert steps["replay, wide"] > 2 * 12, "a linear map costs a fraction of a transformer"


def test_changes_to_a_recipe_are_part_of_the_cells_that_have_one_and_of_the_title() -> None:
    spec = read().tables[0]
    recipes = {row.label: row.recipe for row in spec.rows()}
    assert recipes["ideal"] == recipes["gain_map"] == recipes["statistical"] == ""
    assert json.loads(recipes["replay"]) == {"steps": 6, "dim": 16, "heads": 2, "depth": 1, "patch": [32, 36]}
    assert replace(spec, recipe={"steps": 100}).rows()[2].recipe == "", "its own numbers are no change"
    table = {"spec": {**spec.__dict__}, "title": spec.title, "use": "reported", "streams": []}
    assert title(table).startswith(
        "Strategies: 3 runs of 200 lumisections, seeds 100, 101 (reported), 1000 kB, steps 6, dim 16"
    )


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("seeds = [100]", "seedz = [100]", "spec.toml, table learners: unknown key seedz; the keys are name"),
        ("seeds = [100]", 'seeds = ["x"]', r"table models: seeds\.0: .*valid integer.* \(got 'x'\)"),
        ("seeds = [100, 101]", "seeds = [3, 100]", "table learners: seeds: .*do not go together"),
        ('streams = ["small", "null"]', 'streams = ["nowhere"]', "table learners: streams: there is no stream"),
        ('streams = ["small", "null"]', "streams = []", "streams: the list is empty"),
        ('"replay", "cnn", "stat', '"magic", "cnn", "stat', "strategies: there is no strategy"),
        ("runs = 3", "runs = 1", "runs: a benchmark takes 2 to 100000 runs, not 1"),
        ("lumisections = 200", "lumisections = 50", "takes 180 to 10000000 lumisections, not 50"),
        ("[30_000, 1", "[-30_000, 1", "table memory: memory_bytes: -30000 is negative"),
        ("recipe = {", "recipe = {speed = 3, ", "recipe: a recipe has no speed"),
        ('models = ["experts", "wide"]', 'models = ["deep"]', r"models: 'deep' is not a section .*experts, wide"),
        ('["gain_map", "replay", "cnn"]', '["gain_map", "cnn"]', "models: none of gain_map, cnn takes a network"),
        ("batch = 32", "steps = 3", r"models\.wide: .*sets the steps of all models"),
        ("batch = 32", "batches = 3", r"models\.wide: a recipe has no batches"),
        ('name = "models"', 'name = "memory"', "two tables are called memory"),
        ('name = "models"', 'name = "../models"', "cannot be part of a file name"),
        ('name = "models"', 'name = "models"\nfocus = "null"', "focus: 'null' is not a stream of the table"),
        ('name = "models"', 'name = "models"\nagainst = "replay"', "against: 'replay' is not a row of .*replay, wide"),
        ('name = "models"', 'name = "models"\nsplit = "hope"', "split: there is no split"),
        ('name = "models"', 'name = "models"\ncompute = "gpu"', "compute: Input should be 'steps', 'flops' or 'own'"),
        ('[models.wide]\nmodel = "linear"\nbatch = 32', "[models]\nwide = 3", "give each model a section"),
    ],
)
def test_an_error_names_its_key(before: str, after: str, reason: str) -> None:
    assert before in TEXT
    with pytest.raises(InputError, match=reason):
        read(TEXT.replace(before, after, 1))


@pytest.mark.parametrize("changes", [{"seeds": (3, 100)}, {"runs": 1}, {"recipe": {"speed": 3}}])
def test_errors_are_raised_before_anything_is_computed(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run_benchmark(Benchmark((replace(TableSpec(), **changes),)), tmp_path / "out", Workers())
    assert not (tmp_path / "out").exists()
