"""The settings: one validated model, read from flags, then DQMSTREAM_* in the environment, then a TOML file, then defaults.

A setting is written here once. The options of the command line and their help are made from this model (`cli.options`), and
the learner that `consume` starts gets all of them as one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_EVENTS, utf8

MAX_SEED = 2**64 - 1
"""The largest seed that all random generators accept."""
MAX_COUNT = 2**31 - 1
MAX_MEMORY_BYTES = 1 << 40
MAX_WAIT_S = 366 * 86_400.0
MAX_AGE_S = 1e9
MAX_THREADS = 1024

_PREFIX = "DQMSTREAM_"
_NO_SETTINGS = ("config", "soak", "test_bootstrap")
"""Variables of this program and its tests that are no settings."""
_OF_KUBERNETES = re.compile(r"^(\w+_)?(service_host|service_port(_\w+)?|port(_\d+_(tcp|udp|sctp)(_(proto|port|addr))?)?)$")
"""Variables that Kubernetes sets in every container if a service has a name that begins with dqmstream."""


class Settings(BaseSettings):
    """Everything that can be set. A field has the name of its flag (with hyphens), of DQMSTREAM_<NAME> and of the TOML key.

    description: the help of the flag, without the default where the field has one.
    """

    model_config = SettingsConfigDict(env_prefix="DQMSTREAM_", extra="forbid")

    archive: Path | None = Field(None, description="folder of the archive")
    state: Path | None = Field(None, description="folder of the learners' state (default: ARCHIVE.state)")

    bootstrap: str | None = Field(None, description="host:port of the Kafka broker; several, separated by commas")
    topic: str | None = Field(None, description="Kafka topic of the data")
    group: str | None = Field(None, description="consumer group (default: dqmstream-<archive id>-<copy of the archive>)")
    instance: str | None = Field(None, description="static member id of this worker in its group")
    dead_letter_topic: str | None = Field(
        None, description="topic for messages that cannot be stored (default: TOPIC.deadletter)"
    )
    session_timeout_ms: int = Field(45_000, ge=1000, le=MAX_COUNT, description="time after which Kafka takes a worker for dead")
    accept_gap: bool = Field(False, description="go on where the broker deleted messages before they were read; record the gap")
    accept_others: bool = Field(
        False, description="dead-letter messages of another source at once, even if none of the archive's source has come"
    )
    crc_required: bool = Field(True, description="refuse messages without the header crc32c")
    max_events: int = Field(
        MAX_EVENTS,
        ge=1,
        le=2**31 - 1,
        description="largest possible number of events in a lumisection; a count above it, or above n_events, is refused",
    )
    max_rows: int = Field(1024, ge=1, le=65536, description="largest number of rows in one commit")
    flush_s: float = Field(1.0, gt=0, le=3600, description="longest time that a row waits for its commit")
    drain_s: float = Field(
        30.0, gt=0, le=MAX_WAIT_S, description="longest time that SIGTERM waits until everything that was read is on disk"
    )

    dtype: Literal["float32", "uint16"] | None = Field(
        None, description="of a new archive: float32, or uint16 for whole counts only (default: float32)"
    )
    depths: int | None = Field(None, ge=1, le=7, description="of a new archive: number of depths, 1 to 7 (default: 1)")
    source: str | None = Field(
        None,
        description="of a new archive: dataset and monitoring element (default: the one that 16 lumisections agree on)",
    )

    keep_snapshots_s: float = Field(
        21_600.0, ge=600, le=MAX_AGE_S, description="`consume` drops snapshots without a tag that are older than this"
    )

    name: str = Field(
        "live", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name of the learner, and of its folder in the state"
    )
    task: Literal["runs", "labels"] = Field(
        "runs", description="what is learnt: runs (which run is it?) or labels (is the lumisection good or faulty?)"
    )
    strategy: str = Field(
        "default",
        description="default (which is hybrid), naive, replay, er_ace, der, agem, lwf, ewc, ensemble, si, mas, gdumb, "
        "rar, cumulative, joint, cnn, statistical_replay, hybrid, gain_map, ncm, naive_bayes, ring_means, "
        "logistic, statistical, slda, ridge, outages, modes, stacked",
    )
    recipe: dict[str, Any] = Field({}, description="changes to the recipe of the strategy, by name (docs/learner.md)")
    reference: Path | None = Field(
        None, description="file made by `dqmstream reference` (default: the first run that is learnt is the reference)"
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the learner")
    memory_bytes: int = Field(1_000_000, ge=0, le=MAX_MEMORY_BYTES, description="bytes kept of past runs, for the whole stream")
    idle_s: float = Field(
        300.0, gt=0, le=MAX_WAIT_S, description="a run without a stop message is complete after so many seconds without news"
    )
    evaluation_samples: int = Field(6000, ge=1, le=MAX_COUNT, description="lumisections scored at each evaluation, in all")
    watch_samples: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="lumisections scored during each training, to measure the stability gap: at least 400, or 0 for none",
    )
    window: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="learn from a run while it is taken, so many lumisections at a time; 0: when it is complete",
    )
    label_delay: int | None = Field(
        None, ge=0, le=MAX_COUNT, description="number of windows after which the run of a window is known (default: 1)"
    )
    threads: int = Field(1, ge=1, le=MAX_THREADS, description="CPU threads of the learner")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    learner_restarts: int = Field(5, ge=0, le=MAX_COUNT, description="restarts of a learner that makes no progress")
    learner_hang_s: float = Field(
        300.0, ge=10, le=MAX_WAIT_S, description="a learner that shows no sign of life for longer is killed and restarted"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, _TomlSource(settings_cls))

    @property
    def state_path(self) -> Path:
        """The state folder: as set, or ARCHIVE.state beside the archive itself (symbolic links are resolved).

        Older versions put it beside the link: such a folder is used if there is none beside the archive.
        """
        if self.state:
            return self.state
        archive: Path = self.need("archive")
        beside, beside_link = Path(f"{archive.resolve()}.state"), Path(f"{archive}.state")
        return beside_link if beside_link.exists() and not beside.exists() else beside

    def need(self, name: str) -> Any:
        """The value of a setting. Raises InputError if it was not given."""
        value = getattr(self, name)
        if value is None:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} is missing: give the flag, DQMSTREAM_{name.upper()}, or {name} in the TOML file")
        return value


class _TomlSource(PydanticBaseSettingsSource):
    """The TOML file that --config or DQMSTREAM_CONFIG names."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        path = os.environ.get("DQMSTREAM_CONFIG")
        return read_table(Path(path)) if path else {}


def read_table(path: Path) -> dict[str, Any]:
    """Read a table of names and values: JSON if the name ends in .json, else TOML. Raises InputError if it cannot be read."""
    kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        found = parse(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as {kind}: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no table of names and values")
    return found


def recipe_flags(path: Path | None, assignments: Sequence[str] | None) -> dict[str, Any] | None:
    """Changes to a recipe from a file and from NAME=VALUE texts, which take precedence; None if there are none.

    A value is read as JSON (`32`, `0.5`, `true`, `[8, 9]`); what is no JSON is taken as text.
    """
    changes = read_table(path) if path else {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set {assignment}: give name=value, as in --set steps=32")
        try:
            changes[name.strip()] = json.loads(value)
        except (ValueError, RecursionError):
            changes[name.strip()] = value.strip()
    return changes or None


def load_settings(**flags: Any) -> Settings:
    """Settings from flags (None: not given), environment and TOML file. Raises InputError, in one line, for a bad value.

    An unknown name is refused too. The error suggests the nearest setting, and does not quote the value: it may be a secret.
    """
    _check_environment(os.environ)
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except SettingsError as error:
        raise InputError(f"a setting in the environment is no JSON: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InputError(f"setting {where}: there is none of that name{_nearest(where)}") from None
        raise InputError(f"setting {where}: {first['msg']} (got {first.get('input')!r})") from error
    for name in Settings.model_fields:  # the archive and Kafka accept UTF-8 only; other paths may be any bytes
        value = getattr(settings, name)
        if (isinstance(value, str) or name == "archive") and utf8(str(value)) != str(value):
            raise InputError(f"setting {name}: {utf8(str(value))} is not UTF-8 text: choose another name")
    return settings


def as_json(settings: Settings) -> str:
    """All settings as one JSON object, for another process of this program; `from_json` reads it."""
    return json.dumps({name: str(value) if isinstance(value, Path) else value for name, value in settings.model_dump().items()})


def from_json(text: str) -> Settings:
    """The settings that `as_json` wrote. Raises InputError if the text is anything else."""
    try:
        given = json.loads(text)
    except ValueError as error:
        raise InputError(f"the settings are no JSON: {error}") from error
    if not isinstance(given, dict):
        raise InputError("the settings are no JSON object")
    # Text with bytes that are no UTF-8 is refused by pydantic, a path made of it is not.
    paths = {name for name, field in Settings.model_fields.items() if Path in (field.annotation, *get_args(field.annotation))}
    return load_settings(
        **{name: Path(value) if name in paths and isinstance(value, str) else value for name, value in given.items()}
    )


def _check_environment(names: Iterable[str]) -> None:
    """Raise InputError for a DQMSTREAM_ variable that is no setting: a misspelt one would have no effect."""
    for name in sorted(names):
        if not name.upper().startswith(_PREFIX):
            continue
        meant = name[len(_PREFIX) :].lower()
        if meant not in (*Settings.model_fields, *_NO_SETTINGS) and not _OF_KUBERNETES.match(meant):
            raise InputError(f"{name} in the environment is no setting{_nearest(meant, _PREFIX)}: rename or unset it")


def _nearest(name: str, prefix: str = "") -> str:
    """A question that suggests the setting with the nearest name; "" if none is near."""
    found = get_close_matches(name.lower(), (*Settings.model_fields, "config"), 1)
    meant = found[0].upper() if found and prefix else found[0] if found else ""
    return f" (did you mean {prefix}{meant}?)" if meant else ""
