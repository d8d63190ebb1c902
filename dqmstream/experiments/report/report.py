"""The report: what was learnt and forgotten, whether it is more than chance, and which channels changed, as a page.

It reads the archive and what learners left in the state folder, and runs none of their models. The page, its pictures and
results.json, which holds every number of the page, lie in one folder and ask nothing of the network.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream import __version__
from dqmstream.errors import InputError
from dqmstream.experiments.detector_map import DEAD
from dqmstream.experiments.page import PageFolder, number, page_template, picture
from dqmstream.experiments.report import figures, maps, records
from dqmstream.experiments.report.changes import BEYOND, RunView, largest, run_views
from dqmstream.experiments.report.measures import measure
from dqmstream.experiments.report.records import Record, Row
from dqmstream.learners.evaluation.history import results
from dqmstream.storage.archive import Archive

SHOWN_RUNS = figures.ANNOTATED_RUNS
"""Of a longer stream, only so many of the last runs get maps, curves and lines in tables."""

TOP_CHANNELS = 15
Progress = Callable[[str, int, int], None]


def write_report(archive: Archive, state: Path, out: Path, *, progress: Progress = lambda stage, done, total: None) -> Path:
    """Write the report of an archive and its learners into a folder, and return the path of its index.html.

    state: one folder a learner. out: missing, empty, or an older report's. progress: called with the stage, how many of
    all steps are done, and their number. Raises StateError if no learner has learnt a run or one cannot be read,
    InputError if out holds files that no report wrote, or cannot be written.
    """
    learners = records.read_records(archive, state)
    try:
        return _Report(archive, learners, PageFolder(out), progress).write()
    except OSError as error:
        raise InputError(f"cannot write {error.filename or out}: {error.strerror}; choose another folder") from error


class _Report:
    """One report in the making: what it is made of, where it goes, and how far it is."""

    def __init__(self, archive: Archive, learners: list[Record], folder: PageFolder, progress: Progress) -> None:
        self.archive = archive
        self.learners = learners
        self.main = learners[0]
        self.folder = folder
        self._progress = progress
        self._done = 0
        self._total = 1 + len(learners) + 2 * min(len(self.main.learnt), SHOWN_RUNS)

    def write(self) -> Path:
        rows, measures = records.summarise(self.learners), measure(self.learners)
        about = self._about()
        overview = self._overview()
        learners = [self._learner(place, record) for place, record in enumerate(self.learners)]
        runs = self._runs()
        contents = {
            "about": about,
            "summary": [asdict(row) for row in rows],
            "measures": [asdict(one) for one in measures],
            "learners": {record.name: results(record.lines) | {"prequential": record.prequential} for record in self.learners},
            "per_run": {record.name: learner["per_run"] for record, learner in zip(self.learners, learners, strict=True)},
            "pulls": [run["change"] | {"run": run["run"]} for run in runs if run["change"]],
        }
        text = json.dumps(contents, indent=1, allow_nan=False)
        self.folder.add("results.json").write_text(text + "\n", encoding="utf-8")
        page = self.folder.add("index.html")
        html = page_template("report.html.j2").render(
            about=about,
            headline=headline(rows),
            rows=rows,
            measures=measures,
            main=self.main,
            overview=overview,
            learners=learners,
            runs=runs,
            stream_runs=len(self.main.learnt),
            shown_runs=SHOWN_RUNS,
            beyond=BEYOND,
            dead=DEAD,
            capture=records.CAPTURE,
            confidence=records.CONFIDENCE,
            sure=records.SURE,
            luminosity_shares=records.LUMINOSITY_SHARES,
        )
        page.write_text(html, encoding="utf-8")
        self.folder.finish()
        return page

    def _step(self, stage: str) -> None:
        self._done += 1
        self._progress(stage, self._done, self._total)

    def _about(self) -> dict[str, Any]:
        summaries = self.archive.runs()
        return {
            "archive": self.archive.path.resolve().name,  # the rest of the path is this machine's business
            "archive_id": self.archive.archive_id,
            "source": self.archive.source,
            "runs": len(summaries),
            "first_run": min((s.run for s in summaries), default=None),
            "last_run": max((s.run for s in summaries), default=None),
            "lumisections": sum(s.lumisections for s in summaries),
            "snapshot": self.archive.snapshot,
            "dtype": self.archive.dtype.name,
            "depths": self.archive.geometry.depths,
            "made": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "dqmstream": __version__,
        }

    def _overview(self) -> dict[str, Any] | None:
        """The picture of all learners and baselines over the stream; None at one run."""
        courses = [records.course(record.name, record.lines, beside=False) for record in self.learners]
        courses += [
            records.course(_beside(name, record, self.main), lines, beside=True)
            for name, record, lines in records.baselines(self.learners)
        ]
        longest = max(len(record.lines) for record in self.learners)
        self._step("draw")
        if longest < 2:
            return None
        file = self.folder.add("stream.png")
        figures.draw_courses(file, longest, courses)
        last = ", ".join(f"{course.name} {number(course.accuracy[-1])}" for course in courses)
        return picture(file, f"Average accuracy and forgetting over {longest} runs. Accuracy at the end: {last}.")

    def _learner(self, place: int, record: Record) -> dict[str, Any]:
        """One learner's section: its pictures and its table of runs."""
        found, curves = results(record.lines), records.rocs(record)
        prefix = f"learner-{place + 1:02d}-{re.sub(r'[^A-Za-z0-9._-]', '-', record.name)}"
        pictures = []
        if len(record.lines) > 1:
            for what, key in (("accuracy", "accuracy_matrix"), ("AUC", "auc_matrix")):
                file = self.folder.add(f"{prefix}-{what.lower()}.png")
                figures.draw_matrix(file, records.square(found[key]), record.runs, what)
                mean = number(found["average_accuracy" if what == "accuracy" else "average_auc"])
                alt = f"Matrix of the {what} of {record.name}: {len(record.lines)} runs, average of the last row {mean}."
                pictures.append(picture(file, alt))
        if curves:
            file = self.folder.add(f"{prefix}-roc.png")
            figures.draw_rocs(file, curves[-SHOWN_RUNS:])
            low, high = min(c.auc for c in curves[-SHOWN_RUNS:]), max(c.auc for c in curves[-SHOWN_RUNS:])
            alt = f"ROC curves of {record.name}, each run against the others: AUC from {low:.3f} to {high:.3f}."
            pictures.append(picture(file, alt))
        if record.prequential:
            file = self.folder.add(f"{prefix}-windows.png")
            figures.draw_windows(file, record.prequential["by_window"])
            words = f"{record.prequential['windows']} windows, accuracy {number(record.prequential['accuracy'])} on arrival"
            pictures.append(picture(file, f"Prequential accuracy of {record.name}: {words}."))
        losses = [line["loss"] for line in record.lines]
        if any(losses):
            file = self.folder.add(f"{prefix}-loss.png")
            figures.draw_losses(file, record.runs, losses)
            pictures.append(picture(file, f"Training loss of {record.name} over {len(record.lines)} runs."))
        self._step("draw")
        return {
            "record": record,
            "pictures": pictures,
            "trained": any(losses),
            "behind": len(record.experiences) - len(record.lines),
            "per_run": records.per_run(record, curves),
        }

    def _runs(self) -> list[dict[str, Any]]:
        """The sections of the last runs: maps, and what changed."""
        views = []
        for view in run_views(self.archive, self.main.learnt, SHOWN_RUNS):
            views.append(view)
            self._step("read")
        # One scale for all runs, so that their maps can be compared; a few hot channels must not darken the rest.
        highest = {
            unit: _rounded_up(max(float(np.nanquantile(view.mean, 0.995)) for view in views if view.per_event is unit))
            for unit in {view.per_event for view in views}
        }
        return [self._run(view, highest[view.per_event]) for view in views]

    def _run(self, view: RunView, highest: float) -> dict[str, Any]:
        file = self.folder.add(f"run-{view.run}-occupancy.png")
        maps.draw_occupancy(file, view, highest)
        alt = f"Occupancy of run {view.run} by ieta and iphi: lumisection {view.first_lumisection}, and the train part's mean."
        section: dict[str, Any] = {"run": view.run, "view": view, "occupancy": picture(file, alt)}
        section |= {"change": None, "pulls": None}
        if view.change is not None:
            change = view.change
            file = self.folder.add(f"run-{view.run}-changes.png")
            maps.draw_change(file, change, view.live)
            alt = f"Pulls of the channels of run {view.run} against run {change.before}: {change.beyond} beyond {BEYOND:g}."
            section["pulls"] = picture(file, alt)
            section["change"] = {
                "before": change.before,
                "channels": change.pull.size,
                "beyond": change.beyond,
                "expected_beyond": change.expected_beyond,
                "expected_beyond_by_width": change.expected_beyond_by_width,
                "width": change.width,
                "dead": int(np.sum(change.gain_after < DEAD)),
                "from_reference": change.from_reference,
                "largest": largest(change, view.live, TOP_CHANNELS),
            }
        self._step("draw")
        return section


def headline(rows: list[Row]) -> tuple[str, list[str]]:
    """What the summary comes to: a title, and sentences in plain words."""
    judged = [row for row in rows if row.verdict != "one run"]
    if not judged:
        return "Nothing to compare yet", ["Only one run has been learnt; telling runs apart begins with the second."]
    seeing = [row for row in judged if row.kind != "luminosity"]
    above = [row for row in seeing if row.verdict == "above chance"]
    sure = [row for row in above if row.p_value is not None and row.p_value < records.SURE]
    beam = [row for row in judged if row.kind == "luminosity"]
    bright = [row for row in beam if row.verdict == "above chance"]
    if not above:
        title = "Nothing found"
        words = [
            "Every learner and every baseline that looks at channels is at chance: none tells the runs apart better than "
            "guessing. What they look at did not change by more than counting noise."
        ]
    elif not sure:
        title = "Hardly anything found"
        words = [
            f"Just above chance: {_named(above)}. Guessing alone gives as much to one row in forty, and there are "
            f"{len(seeing)} here. More lumisections or runs would settle it."
        ]
    else:
        title, words = "The runs differ", [f"Better than guessing: {_named(above)}."]
        failed = [row.name for row in seeing if row.kind == "learner" and row not in above]
        if failed:
            words.append(f"At chance although the runs differ: {', '.join(failed)}. They forgot, or saw no change.")
    if bright:
        words.append(f"Luminosity alone tells runs apart ({_named(bright)}): only what goes beyond it is the detector.")
    elif beam:
        words.append(f"Luminosity alone is at chance ({_named(beam)}): it does not tell the runs apart.")
    return title, words


def _named(rows: list[Row]) -> str:
    return ", ".join(f"{row.name} {number(row.average_accuracy)}" for row in rows)


def _beside(name: str, record: Record, main: Record) -> str:
    """A baseline's name, with its learner's where that is not the main one."""
    return name if record is main else f"{name} beside {record.name}"


def _rounded_up(value: float) -> float:
    """The next number of two digits: 0.987 is 0.99, 1234 is 1300."""
    unit = 10.0 ** (np.floor(np.log10(value)) - 1) if value > 0 else 1.0
    return float(np.ceil(value / unit) * unit)
