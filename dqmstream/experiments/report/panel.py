"""A panel of the report: one part of the page, its links in the contents, and its entries of results.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dqmstream.experiments.page import PageFolder
from dqmstream.experiments.report.learner_records import LabelRecord, LearnerRecord
from dqmstream.experiments.report.summary import SummaryRow, summarise
from dqmstream.storage.archive import Archive


@dataclass(frozen=True)
class Link:
    """A line of the contents: the id of an element of the page, the words, and a note behind them."""

    anchor: str
    words: str
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """What a panel gives to the page.

    template: in `experiments/templates/report/`. values: of that template. links: for the contents, in their order. results:
    entries of results.json.
    """

    template: str
    values: dict[str, Any] = field(default_factory=dict)
    links: Sequence[Link] = ()
    results: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportInputs:
    """What every panel can use.

    learners: at least one; the first is the main one, whose runs are shown. about: the archive, as results.json has it.
    folder: takes the pictures. shown_runs: only so many of the last runs are drawn and listed. step: to be called after each
    step with its name ("read" or "draw"). labels: learners of good and faulty lumisections.
    """

    archive: Archive
    learners: Sequence[LearnerRecord]
    about: dict[str, Any]
    folder: PageFolder
    shown_runs: int
    step: Callable[[str], None]
    labels: Sequence[LabelRecord] = ()

    @property
    def main(self) -> LearnerRecord:
        return self.learners[0]

    @cached_property
    def rows(self) -> list[SummaryRow]:
        return summarise(self.learners)


MakePanel = Callable[[ReportInputs], Panel | None]
"""Draws a panel's pictures and returns it; None where there is nothing to show."""
