"""Settings and options: a misspelt name is told, and every number has its bounds."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import annotated_types
import pytest
import typer
from typer.models import OptionInfo

from dqmstream.cli.main import app
from dqmstream.cli.options import LEARNER
from dqmstream.errors import InputError
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import DEFAULT, NAMES
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.service.learn import learner_settings
from dqmstream.service.learner_process import settings_of_child
from dqmstream.settings import MAX_SEED, Settings, as_json, from_json, load_settings
from dqmstream.storage.archive import Archive
from dqmstream.storage.maintenance.export import export
from tests.commandline import dqmstream, told


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("DQMSTREAM_ARCHIV", " (did you mean DQMSTREAM_ARCHIVE?)"),
        ("DQMSTREAM_BOOTSTRAPS", " (did you mean DQMSTREAM_BOOTSTRAP?)"),
        ("dqmstream_keep_snapshot_s", " (did you mean DQMSTREAM_KEEP_SNAPSHOTS_S?)"),
        ("DQMSTREAM_CONFIGS", " (did you mean DQMSTREAM_CONFIG?)"),
        ("DQMSTREAM_QQQ", ""),
    ],
)
def test_a_variable_that_is_no_setting_is_told_with_the_nearest_and_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    monkeypatch.setenv(name, "hunter2")
    with pytest.raises(InputError) as raised:
        load_settings()
    assert str(raised.value) == f"{name} in the environment is no setting{nearest}: rename or unset it"


def test_variables_of_ours_and_of_kubernetes_are_none_of_the_misspelt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SOAK", "TEST_BOOTSTRAP", "SERVICE_HOST", "PORT", "PORT_9092_TCP_ADDR", "KAFKA_SERVICE_PORT_BROKER"):
        monkeypatch.setenv(f"DQMSTREAM_{name}", "1")
    monkeypatch.setenv("DQMSTREAM_SEED", "7")
    assert load_settings().seed == 7


def test_a_misspelt_key_of_the_file_is_told_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dqm.toml").write_text('bootstrp = "hunter2"\n')
    monkeypatch.setenv("DQMSTREAM_CONFIG", str(tmp_path / "dqm.toml"))
    with pytest.raises(InputError, match=r"^setting bootstrp: there is none of that name \(did you mean bootstrap\?\)$"):
        load_settings()


def test_the_learner_of_a_service_gets_all_settings_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9.safetensors"))  # a path that is no UTF-8
    given = load_settings(
        archive=tmp_path / "A", seed=2**64 - 1, recipe={"patch": [8, 9], "model": "cnn"}, reference=odd, label_delay=3,
        window=50, accept_gap=True,
    )  # fmt: skip
    monkeypatch.setenv("DQMSTREAM_SEED", "5")  # what the parent decided stands
    child = settings_of_child(Archive.create(tmp_path / "A"), tmp_path / "S", given, 2.5)
    assert from_json(as_json(child)) == child
    of_parent = {**child.model_dump(), "archive": given.archive, "state": given.state, "idle_s": given.idle_s}
    assert of_parent == given.model_dump()
    for text, says in (("[]", "no JSON object"), ("{", "no JSON"), ('{"sed": 1}', "there is none of that name")):
        with pytest.raises(InputError, match=says):
            from_json(text)


def test_every_setting_of_the_learner_reaches_it_and_has_its_option() -> None:
    own = {field.name for field in fields(LearnerSettings)} & set(Settings.model_fields)
    assert own == {*LEARNER, "idle_s"}
    changed = load_settings(
        strategy="slda", recipe={"steps": 3}, reference="r", seed=7, memory_bytes=9, idle_s=1.5, evaluation_samples=8,
        watch_samples=400, window=50, label_delay=4, threads=2, device="cpu",
    )  # fmt: skip
    learner = learner_settings(changed)
    assert {name: getattr(learner, name) for name in own} == {name: getattr(changed, name) for name in own}


def test_the_help_of_strategy_names_all_of_them() -> None:
    described = Settings.model_fields["strategy"].description or ""
    own, _, others = described.partition("), ")
    assert own == f"default (which is {DEFAULT}" and set(others.split(", ")) == set(NAMES)


@pytest.mark.parametrize("command", ["consume", "learn", "replay"])
def test_options_are_made_of_settings_with_their_help_and_default(command: str) -> None:
    made = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    options = {parameter.name: parameter for parameter in made.params}
    for name in set(LEARNER) - {"recipe"}:
        field = Settings.model_fields[name]
        assert options[name].opts == [f"--{name.replace('_', '-')}"]
        assert field.description in options[name].help
        assert field.default is None or f"(default: {field.default}" in options[name].help


def test_archives_are_opened_by_text_as_by_paths(tmp_path: Path) -> None:
    made = Archive.create(str(tmp_path / "A"))
    assert Archive.exists(str(tmp_path / "A"))
    opened = Archive.open(str(tmp_path / "A"))
    assert opened.archive_id == made.archive_id and opened.path == tmp_path / "A"
    with pytest.raises(InputError, match="holds no run"):
        export(opened, str(tmp_path / "out.zarr"))


def test_every_number_of_the_settings_has_bounds_and_what_lies_beyond_is_refused() -> None:
    numbers = {
        name: [kind for kind in (int, float) if kind in (field.annotation, *typing.get_args(field.annotation))]
        for name, field in Settings.model_fields.items()
    }
    checked = 0
    for name, kinds in numbers.items():
        if not kinds:
            continue
        field = Settings.model_fields[name]
        bounds = {type(bound): bound for bound in field.metadata}
        assert annotated_types.Le in bounds, name
        assert bounds.keys() & {annotated_types.Ge, annotated_types.Gt}, name
        most = bounds[annotated_types.Le].le
        assert getattr(load_settings(**{name: most}), name) == most
        beyond = [most * 2, -1, 2**70] + ([float("nan"), float("inf")] if kinds == [float] else [])
        for value in beyond:
            with pytest.raises(InputError, match=f"setting {name}: "):
                load_settings(**{name: value})
        checked += 1
    assert checked >= 15


def _commands(group: typer.Typer) -> Iterator[tuple[list[str], Callable[..., object]]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield [(command.name or command.callback.__name__).replace("_", "-").strip("-")], command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        name = inner.typer_instance.info.name
        for words, callback in _commands(inner.typer_instance):
            yield ([name] if isinstance(name, str) else []) + words, callback


def _numbers() -> Iterator[tuple[list[str], str, type, OptionInfo]]:
    """Every numeric option of every command that is no setting: words of the command, flag, type, what typer knows of it."""
    for words, callback in _commands(app):
        for name, hint in typing.get_type_hints(callback, include_extras=True).items():
            if typing.get_origin(hint) is not typing.Annotated:
                continue
            kind, option = typing.get_args(hint)[:2]
            inner = {part for one in (kind, *typing.get_args(kind)) for part in (one, *typing.get_args(one))}
            if isinstance(option, OptionInfo) and (number := inner & {int, float}):
                flag = (option.param_decls or (f"--{name.replace('_', '-')}",))[0]
                if name not in Settings.model_fields or option.max is not None:
                    yield words, flag, number.pop(), option


def test_every_number_of_the_options_has_bounds_and_what_lies_beyond_is_refused() -> None:
    checked, command = 0, typer.main.get_command(app)
    for words, flag, kind, option in _numbers():
        assert option.max is not None, (words, flag)
        for value in [10**30] + (["nan"] if kind is float else []):
            with pytest.raises(SystemExit) as ended:
                command([*words, flag, str(value)])
            assert ended.value.code == 2, (words, flag, value)
        checked += 1
    assert checked >= 30


def test_seeds_up_to_the_largest_that_generators_take_are_taken(tmp_path: Path) -> None:
    assert load_settings(seed=2**64 - 1).seed == MAX_SEED
    says = told(dqmstream("learn", "--archive", tmp_path / "A", "--seed", 2**64), 3)
    assert "setting seed: Input should be less than or equal to 18446744073709551615" in says
    done = dqmstream("simulate", tmp_path / "sim", "--runs", 1, "--lumisections", 1, "--seed", MAX_SEED)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 0}, {"dim": 0}, {"dim": 2**40}, {"depth": 0}, {"patch": (0, 9)}, {"patch": (-8, 9)}, {"mlp_ratio": 0.0},
        {"experts": 0}, {"steps": 0}, {"batch": -1}, {"lr": -1.0}, {"noise": -1.0}, {"warmup": 2.0}, {"ewc_decay": -1.0},
        {"cnn_widths": ()}, {"cnn_widths": (16, 0)}, {"micro_batch": -1}, {"lwf_temperature": 0.0},
    ],
)  # fmt: skip
def test_every_number_of_a_recipe_has_bounds(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        Recipe().changed(changes)
