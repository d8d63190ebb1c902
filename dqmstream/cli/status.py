"""`dqmstream status`: what an archive holds, and what its learners last did."""

from __future__ import annotations

from typing import Any

from dqmstream.cli import output
from dqmstream.cli.options import Json, show, with_settings
from dqmstream.settings import Settings


@with_settings("archive", "state")
def status(settings: Settings, as_json: Json = False) -> None:
    """Print what the archive holds (runs, offsets) and what its learners last did."""
    from dqmstream.learners.stream.status import learner_status
    from dqmstream.storage.archive import Archive
    from dqmstream.storage.status import archive_status

    reader = Archive.open(settings.need("archive"))
    result = {**archive_status(reader), "learners": learner_status(reader, settings.state_path, settings.learner_hang_s)}
    show(result, as_json, *describe_status(result))


def describe_status(result: dict[str, Any]) -> list[Any]:
    """What is printed of `archive_status` and `learner_status`: runs, feeds, learners, and what is wrong with them."""
    columns = ["run", "lumisections", "first", "last", "missing", "revisions", "duplicates", "complete", "scale"]
    runs = [[str(run[column]) for column in columns] for run in result["runs"]]
    kinds = ["feed", "partition", "first_offset", "next_offset", "rows", "duplicate", "dead", "hole", "gap"]
    feeds = [[str(feed[kind]) for kind in kinds] for feed in result["feeds"]]
    parts: list[Any] = [
        f"{result['archive']} ({result['archive_id']}): {result['lumisections']} lumisections of {len(runs)} runs, "
        f"{result['dtype']}, {result['depths']} depth(s), snapshot {result['snapshot']} of {result['committed']}",
        output.table("runs", columns, runs),
        output.table("feeds", [kind.replace("_", " ") for kind in kinds], feeds),
    ]
    if result["clock_behind_s"]:
        behind = f"Warning: the clock of this machine is {result['clock_behind_s']:.0f} s behind the newest commit"
        parts.insert(1, f"{behind}: the next commit waits for it, or sets the times of earlier commits back")
    if learners := result["learners"]:
        shown = {
            "strategy": "strategy", "condition": "condition", "learnt": "experiences_learnt", "behind": "experiences_behind",
            "last run": "last_run", "accuracy": "average_accuracy", "last 8": "accuracy_last_8",
            "prequential": "prequential_accuracy", "reference": "reference", "written": "written",
        }  # fmt: skip
        flat = {name: {**one, "accuracy_last_8": one.get("accuracy_by_last", {}).get("8")} for name, one in learners.items()}
        rows = [[name, *(one.get(key) for key in shown.values())] for name, one in flat.items()]
        parts.append(output.table("learners", ["name", *shown], rows))
        parts += [f"learner {name}: {told}" for name, one in learners.items() if (told := _trouble(one))]
        parts += [
            f"learner {name}: the law of the response is off, {told}"
            for name, one in learners.items()
            for told in (one.get("law") or {}).get("sentences", [])
        ]
        parts += [
            f"learner {name}: {lumisections} lumisections of run {run} were filed after it was learnt, and are not learnt: "
            f"stop the other learners, then run `dqmstream learn --again {run}`"
            for name, one in learners.items()
            for run, lumisections in one.get("late_lumisections", {}).items()
        ]
    return parts


def _trouble(learner: dict[str, Any]) -> str:
    """What is wrong with a learner, in a sentence; "" if nothing is."""
    if learner.get("condition") == "failed":
        return f"it failed: {learner['error']}"
    if learner.get("condition") == "hangs":
        silent_s = f"{learner['silent_s']:.0f} s"
        return f"it runs, but has shown no sign of life for {silent_s}; `consume` kills and restarts its own learner"
    if learner.get("condition") == "killed":
        return "it was killed and does not run"
    return ""
