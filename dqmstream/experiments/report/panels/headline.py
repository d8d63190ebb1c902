"""Panel: whether any learner or baseline tells the runs apart, in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from dqmstream.experiments.page import number
from dqmstream.experiments.report.panel import Panel, ReportInputs
from dqmstream.experiments.report.summary import SURE, SummaryRow


def headline_panel(report: ReportInputs) -> Panel:
    title, sentences = headline(report.rows)
    return Panel("headline.html.j2", {"title": title, "sentences": sentences})


def headline(rows: Sequence[SummaryRow]) -> tuple[str, list[str]]:
    """The summary in plain words: a title, and sentences."""
    judged = [row for row in rows if row.verdict != "one run"]
    if not judged:
        return "Nothing to compare yet", ["Only one run has been learnt; there is something to tell apart from the second on."]
    seeing = [row for row in judged if row.kind != "luminosity"]
    above = [row for row in seeing if row.verdict == "above chance"]
    sure = [row for row in above if row.p_value is not None and row.p_value < SURE]
    beam = [row for row in judged if row.kind == "luminosity"]
    bright = [row for row in beam if row.verdict == "above chance"]
    if not above:
        title = "Nothing found"
        words = [
            "Every learner and every baseline that sees channels is at chance: none tells the runs apart better than guessing. "
            "No change is larger than counting noise."
        ]
    elif not sure:
        title = "Hardly anything found"
        words = [
            f"Just above chance: {_named(above)}. Guessing alone puts one row in forty there, and there are {len(seeing)} "
            "rows. More lumisections or more runs would decide it."
        ]
    else:
        title, words = "The runs differ", [f"Better than guessing: {_named(above)}."]
        failed = [row.name for row in seeing if row.kind == "learner" and row not in above]
        if failed:
            words.append(f"At chance although the runs differ: {', '.join(failed)}. They forgot, or did not see the change.")
    if bright:
        words.append(f"Luminosity alone tells runs apart ({_named(bright)}): only what goes beyond it is due to the detector.")
    elif beam:
        words.append(f"Luminosity alone is at chance ({_named(beam)}): it does not tell the runs apart.")
    return title, words


def _named(rows: Sequence[SummaryRow]) -> str:
    return ", ".join(f"{row.name} {number(row.average_accuracy)}" for row in rows)
