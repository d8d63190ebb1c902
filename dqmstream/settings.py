"""One validated settings model: flags, then DQMSTREAM_* in the environment, then a TOML file, then defaults."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_EVENTS, utf8

MAX_SEED = 2**64 - 1
"""The largest that all random generators take."""
MAX_COUNT = 2**31 - 1
MAX_MEMORY_BYTES = 1 << 40
MAX_WAIT_S = 366 * 86_400.0
MAX_AGE_S = 1e9
MAX_THREADS = 1024

_PREFIX = "DQMSTREAM_"
_NO_SETTINGS = ("config", "soak", "test_bootstrap")
"""Of this program and its tests all the same."""
_OF_KUBERNETES = re.compile(r"^(\w+_)?(service_host|service_port(_\w+)?|port(_\d+_(tcp|udp|sctp)(_(proto|port|addr))?)?)$")
"""Set in every container beside a service whose name begins with dqmstream."""


class Settings(BaseSettings):
    """Everything that can be set. A name here is the flag's with underscores, DQMSTREAM_<NAME>, and the TOML key."""

    model_config = SettingsConfigDict(env_prefix="DQMSTREAM_", extra="forbid")

    archive: Path | None = None
    state: Path | None = None

    bootstrap: str | None = Field(None, description="host:port of the broker, several with commas")
    topic: str | None = None
    group: str | None = Field(None, description="consumer group, default dqmstream-<archive id>-<copy>")
    instance: str | None = Field(None, description="static member id in the group")
    dead_letter_topic: str | None = Field(None, description="default <topic>.deadletter")
    session_timeout_ms: int = Field(45_000, ge=1000, le=MAX_COUNT)
    accept_gap: bool = Field(False, description="record what the broker deleted before it was read, and go on")
    accept_others: bool = Field(False, description="make dead letters of other sources even while none is the archive's")
    crc_required: bool = Field(True, description="refuse messages without the header crc32c")
    max_events: int = Field(MAX_EVENTS, ge=1, le=2**31 - 1, description="most events of a lumisection, which bound its counts")
    max_rows: int = Field(1024, ge=1, le=65536, description="rows in one commit under load")
    flush_s: float = Field(1.0, gt=0, le=3600, description="longest that a row waits for its commit")
    drain_s: float = Field(
        30.0, gt=0, le=MAX_WAIT_S, description="longest that SIGTERM waits for the disk to take what was read"
    )

    dtype: Literal["float32", "uint16"] | None = Field(None, description="of a new archive, default float32")
    depths: int | None = Field(None, ge=1, le=7, description="of a new archive, default 1")
    source: str | None = Field(None, description="dataset and monitoring element of a new archive, default what many rows name")

    keep_snapshots_s: float = Field(
        21_600.0, ge=600, le=MAX_AGE_S, description="`consume` drops untagged snapshots older than this"
    )

    name: str = Field("live", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="the learner's folder in the state")
    strategy: str = "default"
    recipe: dict[str, Any] = Field(
        {}, description="changes to the strategy's recipe, entry by entry: `learners.networks.recipe`"
    )
    reference: Path | None = Field(None, description="file of `dqmstream reference`; the first run is it where none is given")
    seed: int = Field(0, ge=0, le=MAX_SEED)
    memory_bytes: int = Field(1_000_000, ge=0, le=MAX_MEMORY_BYTES)
    idle_s: float = Field(300.0, gt=0, le=MAX_WAIT_S, description="a run without a stop is complete after so long without news")
    evaluation_samples: int = Field(6000, ge=1, le=MAX_COUNT)
    watch_samples: int = Field(
        0, ge=0, le=MAX_COUNT, description="lumisections scored in the course of each training, 0 for none"
    )
    window: int = Field(
        0, ge=0, le=MAX_COUNT, description="learn from a run while it goes on, so many lumisections at a time, 0 for not"
    )
    label_delay: int | None = Field(
        None, ge=0, le=MAX_COUNT, description="windows until it is known of which run one was, default 1"
    )
    threads: int = Field(1, ge=1, le=MAX_THREADS, description="CPU threads of the learner")
    device: str = "auto"
    learner_restarts: int = Field(5, ge=0, le=MAX_COUNT, description="restarts of a learner that makes no progress")
    learner_hang_s: float = Field(
        300.0, ge=10, le=MAX_WAIT_S, description="a learner without a sign of life for longer is killed"
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
        """The state folder: as set, or beside the archive, links to it followed.

        One that stands beside a link, where older versions made it, is used on unless there is one beside the archive.
        """
        if self.state:
            return self.state
        archive: Path = self.need("archive")
        beside, beside_link = Path(f"{archive.resolve()}.state"), Path(f"{archive}.state")
        return beside_link if beside_link.exists() and not beside.exists() else beside

    def need(self, name: str) -> Any:
        """The setting's value. Raises InputError if it was given nowhere."""
        value = getattr(self, name)
        if value is None:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} is missing: give the flag, DQMSTREAM_{name.upper()}, or {name} in the TOML file")
        return value


class _TomlSource(PydanticBaseSettingsSource):
    """The TOML file that DQMSTREAM_CONFIG names, which is also what --config sets."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        path = os.environ.get("DQMSTREAM_CONFIG")
        return read_table(Path(path)) if path else {}


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file, or a JSON one where its name ends so. Raises InputError where it cannot be read as that."""
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
    """Changes to a recipe from a file and from `name=value`, of which the latter win; None where there are none.

    A value is read as JSON (`32`, `0.5`, `true`, `[8, 9]`), and is text where it is none.
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
    """Settings from flags (None: not given), environment and TOML file. Raises InputError, in one line, for a bad one.

    A name that is no setting is refused too, with the nearest that is one and without its value, which may be a secret.
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
    for name in Settings.model_fields:  # archive and Kafka take UTF-8; other paths may be any that the file system has
        value = getattr(settings, name)
        if (isinstance(value, str) or name == "archive") and utf8(str(value)) != str(value):
            raise InputError(f"setting {name}: {utf8(str(value))} is not UTF-8 text: choose another name")
    return settings


def _check_environment(names: Iterable[str]) -> None:
    """Raise InputError for a DQMSTREAM_ variable that is no setting: a misspelt one would be without effect."""
    for name in sorted(names):
        if not name.upper().startswith(_PREFIX):
            continue
        meant = name[len(_PREFIX) :].lower()
        if meant not in (*Settings.model_fields, *_NO_SETTINGS) and not _OF_KUBERNETES.match(meant):
            raise InputError(f"{name} in the environment is no setting{_nearest(meant, _PREFIX)}: rename or unset it")


def _nearest(name: str, prefix: str = "") -> str:
    """A question for the setting that was perhaps meant; nothing where none is near."""
    found = get_close_matches(name.lower(), (*Settings.model_fields, "config"), 1)
    meant = found[0].upper() if found and prefix else found[0] if found else ""
    return f" (did you mean {prefix}{meant}?)" if meant else ""
