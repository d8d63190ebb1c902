"""The status of every learner in a state folder, read without disturbing one that runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqmstream.learners.evaluation.history import newest_average, newest_by_last, read_history
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.ledger import Experience, late, newest_lines, read_ledger
from dqmstream.learners.stream.state_folder import is_learner, life, read_json, read_status
from dqmstream.storage.archive import Archive
from dqmstream.storage.row_index import RunSummary


def learner_status(archive: Archive, state_path: Path, hang_s: float = 300.0) -> dict[str, Any]:
    """The status of each learner under `state_path`, by the learner's name.

    Each has what the learner last wrote of itself, whether it lives (`learners.stream.state_folder.life`), and how far it is
    behind the archive. The latter is counted here from archive and ledger, so it is right for a dead learner too.

    hang_s: seconds without a sign of life after which a running learner counts as hanging.
    """
    summaries = archive.runs()
    return {
        folder.name: _status(folder, summaries, hang_s)
        for folder in sorted(path for path in state_path.glob("*") if is_learner(path))
    }


def changes_since_frozen(lines: Sequence[Experience], summaries: Sequence[RunSummary]) -> dict[str, dict[str, Any]]:
    """Runs of a ledger that were left out, and why; how many lumisections came, or were revised, after a run was frozen."""
    frozen = newest_lines(lines)
    known = [(s, frozen[s.run]) for s in summaries if s.run in frozen]
    return {
        "left_out": {str(line.run): line.left_out for line in frozen.values() if line.left_out},
        "late_lumisections": {str(s.run): late(line, s) for s, line in known if late(line, s)},
        "revised_lumisections": {str(s.run): s.revisions - line.revisions for s, line in known if s.revisions > line.revisions},
    }


def _status(folder: Path, summaries: list[RunSummary], hang_s: float) -> dict[str, Any]:
    ledger, history = folder / "ledger.jsonl", folder / "history.jsonl"
    frozen = [line for line in read_ledger(ledger) if line.window is None] if ledger.exists() else []
    lines = read_history(history) if history.exists() else []
    lines = lines[: checkpoint.learnt(folder / "checkpoints")]  # lines past the checkpoint will be learnt again
    not_frozen = {summary.run for summary in summaries if summary.complete} - {line.run for line in frozen}
    return {
        **(read_status(folder) or {"strategy": _stored_strategy(folder)}),
        **life(folder, hang_s),
        "experiences_learnt": len(lines),
        "experiences_behind": len(not_frozen) + sum(line.id is not None for line in frozen) - len(lines),
        "last_run": lines[-1].run if lines else None,
        "average_accuracy": newest_average(lines),
        "accuracy_by_last": newest_by_last(lines),
        "late_lumisections": changes_since_frozen(frozen, summaries)["late_lumisections"],
    }


def _stored_strategy(folder: Path) -> str | None:
    """The strategy that state.json names; None if the learner failed before it wrote that file, as on a full disk."""
    path = folder / "state.json"
    return read_json(path).get("strategy") if path.exists() else None
