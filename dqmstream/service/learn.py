"""The learner of an archive, as the settings describe it: beside a stream, or replayed over archived runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from dqmstream.errors import InputError
from dqmstream.learners.registry import recipe_of
from dqmstream.learners.stream.state_folder import check_identity
from dqmstream.learners.task import LABELS
from dqmstream.service.learner_process import die_with_parent
from dqmstream.service.stopping import stop_on_signals
from dqmstream.settings import Settings
from dqmstream.storage.archive import Archive

if TYPE_CHECKING:
    from dqmstream.learners.stream.learner_settings import LearnerSettings

log = structlog.get_logger("dqmstream.service.learn")


def learn_archive(settings: Settings, *, follow: bool, parent: int | None, again: Sequence[int] = ()) -> dict[str, Any]:
    """Learn the complete runs of the archive that are not learnt yet; returns the results.

    follow: keep learning as runs become complete, until SIGTERM. parent: process id of the service that started this learner,
    which ends when that process does. again: runs that are learnt once more, as the archive holds them now.
    """
    archive = Archive.open(settings.need("archive"))
    _check_recipe(settings)
    from dqmstream.learners.stream.learner import Learner

    if parent is not None:
        die_with_parent(parent)

    with Learner(archive, settings.state_path / settings.name, learner_settings(settings)) as learner:
        for run in dict.fromkeys(again):
            learner.again(run)
        with stop_on_signals() as stop:
            learner.follow(stop.is_set, wait=stop.wait, once=not follow)
        return learner.results()


def replay_archive(
    settings: Settings, *, ledger: Path | None, resume: bool, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Replay archived runs (`learners.stream.replay`); returns the results."""
    archive = Archive.open(settings.need("archive"))
    _check_recipe(settings)
    from dqmstream.learners.stream.replay import replay

    return replay(archive, settings.state_path, learner_settings(settings), ledger=ledger, resume=resume, progress=progress)


def learner_settings(settings: Settings) -> LearnerSettings:
    """The settings that concern the learner: those that have the name of one of its own. One that is None keeps its default."""
    from dqmstream.learners.stream.learner_settings import LearnerSettings

    if settings.label_delay is not None and not settings.window:
        raise InputError("--label-delay is for a learner that takes windows: give --window too")
    given = {field.name: getattr(settings, field.name) for field in fields(LearnerSettings) if hasattr(settings, field.name)}
    return LearnerSettings(**{name: value for name, value in given.items() if value is not None or name == "reference"})


def check_learner(archive: Archive, settings: Settings) -> None:
    """Raise StateError if the state is that of another learner."""
    from dqmstream.learners.stream.learner_settings import identity

    check_identity(settings.state_path / settings.name, identity(archive, learner_settings(settings)))


def _check_recipe(settings: Settings) -> None:
    """Raise InputError for changes that no recipe can take; warn if the strategy has no recipe."""
    from dqmstream.learners.labels.registry import label_recipe

    has_recipe = label_recipe if settings.task == LABELS.name else recipe_of
    if has_recipe(settings.strategy, settings.recipe) is None and settings.recipe:
        log.warning(
            "the strategy has no recipe: these change nothing", strategy=settings.strategy, given=sorted(settings.recipe)
        )
