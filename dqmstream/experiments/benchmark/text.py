"""The tables of a benchmark as text: one over all streams, and one per stream with all columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dqmstream.learners.evaluation.history_line import EVERY_LENGTH

COLUMNS = ("", "accuracy", "last 8", "guessing", "of ideal", "AUC", "forgetting", "ECE", "- {against}", "kB", "s")
"""Columns of the table of a stream."""

SHOWN = "8"
"""The n of figures by the last n lumisections that have no table of their own."""

NOTE = (
    "95 % intervals, by resampling runs and streams. guessing: 95 % range of a strategy that knows nothing and assigns "
    "neighbouring lumisections to the same run as often; too wide for a strategy that knows something. ECE: expected "
    "calibration error with a temperature from validation. Differences of accuracy are paired by run; *: the interval excludes "
    "0 and p < .05 after Holm's correction. last n: the last n lumisections name the run by their summed log-probabilities; "
    "n = 1 everywhere else. kB: memory for past runs. LS: lumisections learnt from, repeats counted. GFLOP, s: for learning "
    "all runs, on one thread."
)


def overview(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table over all its streams: accuracies; forgetting and comparison on one stream; cost."""
    spec = table["spec"]
    streams = {one["stream"]: {row["label"]: row for row in one["rows"]} for one in table["streams"]}
    labels = list(dict.fromkeys(label for rows in streams.values() for label in rows))
    focus = streams[spec["focus"]]
    compared = any(row["beside"] for row in focus.values())
    columns = ["", *(f"`{stream}`" for stream in streams), f"forgetting, `{spec['focus']}`"]
    columns += [f"`{spec['focus']}`, minus {spec['against']}"] if compared else []
    columns += ["kB", "LS", "GFLOP", "s"]
    rows = []
    for label in labels:
        of_label = [of_stream[label] for of_stream in streams.values() if label in of_stream]
        row, first = focus.get(label), of_label[0]
        few = "" if first["seeds"] == list(spec["seeds"]) else f" (seeds {', '.join(map(str, first['seeds']))})"
        line = [_labelled(first, f"`{first['strategy']}`") + few]
        line += [_interval(of_stream[label]["accuracy"], 2) if label in of_stream else "" for of_stream in streams.values()]
        line.append(_number(row["forgetting"]["estimate"], 2) if row else "")
        line += [_beside(row, 2) if row else ""] if compared else []
        line.append(_rounded(_mean_of(of_label, "kept_bytes"), 1000))
        line.append(_rounded(_mean_of(of_label, "lumisections"), 1))
        line.append("" if first["bound"] else _rounded(_mean_of(of_label, "flops"), 1e9))
        line.append(_rounded(_mean_of(of_label, "learn_s"), 1))
        rows.append(line)
    return columns, rows


def stream_columns(table: Mapping[str, Any]) -> list[str]:
    """Headings of the table of a stream."""
    return [column.format(against=table["spec"]["against"]) for column in COLUMNS]


def printed(row: Mapping[str, Any]) -> list[str]:
    """A row of a stream as text, one entry for each of `COLUMNS`."""
    return [
        _labelled(row, row["strategy"]),
        _interval(row["accuracy"]),
        _interval(row["by_last"][SHOWN]["accuracy"], 2) if by_last(row) else "",
        f"{_number(row['guessing']['low'])}-{_number(row['guessing']['high'])}",
        _number(row["of_ideal"]),
        _interval(row["auc"]),
        _interval(row["forgetting"]),
        _number(row["ece_calibrated"]),
        _beside(row),
        "" if row["kept_bytes"] is None else f"{row['kept_bytes'] / 1000:.0f}",
        "" if row["learn_s"] is None else f"{row['learn_s']:.1f}",
    ]


def overview_by_last(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table over all streams: accuracy where the last 8 lumisections name the run; no rows without any.

    In parentheses: accuracy divided by that of `ideal`.
    """
    streams = {one["stream"]: {row["label"]: row for row in one["rows"] if by_last(row)} for one in table["streams"]}
    labels = list(dict.fromkeys(label for rows in streams.values() for label in rows))
    rows = []
    for label in labels:
        of_label = [of_stream.get(label) for of_stream in streams.values()]
        first = next(row for row in of_label if row)
        cells = []
        for row in of_label:
            found = row["by_last"][SHOWN] if row else None
            share = f" ({_number(found['of_ideal'], 2)})" if row and found and found["of_ideal"] and not row["bound"] else ""
            cells.append(_interval(found["accuracy"], 2) + share if found else "")
        rows.append([_labelled(first, f"`{first['strategy']}`"), *cells])
    return ["last 8", *(f"`{stream}`" for stream in streams)], rows


def by_last(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of a row by the last n lumisections, by n; empty where it has none, as in an older results.json."""
    found: Mapping[str, Any] = row.get("by_last", {})
    return found


def by_last_columns() -> list[str]:
    """Headings of the table of a stream by the last n lumisections."""
    accuracies = [f"last {n}" if n > 1 else "1" for n in EVERY_LENGTH]
    return ["", *accuracies, *(f"{what}, last {SHOWN}" for what in ("of ideal", "guessing", "AUC", "forgetting", "ECE"))]


def printed_by_last(row: Mapping[str, Any]) -> list[str]:
    """A row of a stream that has figures by the last n, as text, one entry for each of `by_last_columns`."""
    found, shown = row["by_last"], row["by_last"][SHOWN]
    chance = shown["guessing"]
    return [
        _labelled(row, row["strategy"]),
        *(_interval(found[str(n)]["accuracy"], 2) if str(n) in found else "" for n in EVERY_LENGTH),
        _number(shown["of_ideal"]),
        f"{_number(chance['low'])}-{_number(chance['high'])}" if chance else "",
        _number(shown["auc"]["estimate"]),
        _number(shown["forgetting"]["estimate"]),
        _number(shown["ece_calibrated"]),
    ]


def title(table: Mapping[str, Any], stream: str = "") -> str:
    """The line above a table, or above the table of a stream: runs, seeds, memory and recipe."""
    spec = table["spec"]
    seeds = ", ".join(str(seed) for seed in spec["seeds"])
    changed = "".join(f", {name} {value}" for name, value in spec["recipe"].items())
    budgets = ", ".join(f"{budget / 1000:g}" for budget in spec["memory_bytes"])
    orders = f" in {spec['orders']} orders" if spec["orders"] > 1 else ""
    shown = [one for one in table["streams"] if stream in ("", one["stream"])]
    learnt = {number for one in shown for row in one["rows"] for number in row.get("runs_learnt", ())} or {spec["runs"]}
    few, many = min(learnt), max(learnt)
    some = (
        "" if few == spec["runs"] else f", of which {few if few == many else f'{few} to {many}'} are long enough to be learnt"
    )
    guessing = _number(1 / many) if few == many else f"{_number(1 / many)}-{_number(1 / few)}"
    runs = f"{spec['runs']} runs of {spec['lumisections']} lumisections{orders}{some}"
    return (
        f"{stream or table['title'] or table['name']}: {runs}, "
        f"seeds {seeds} ({table['use']}), {budgets} kB{changed}, guessing {guessing}"
    )


def origin(table: Mapping[str, Any]) -> str:
    """The line below a table: commits that computed the rows, and the number of failed cells."""
    rows = [row for one in table["streams"] for row in one["rows"]]
    by_commit: dict[str, list[str]] = {}
    for row in rows:
        for commit in row["commits"]:
            by_commit.setdefault(commit or "unknown", []).append(row["label"])
    if not by_commit:
        text = "No cell is finished."
    elif len(by_commit) == 1:
        text = f"Commit {next(iter(by_commit))}."
    else:
        parts = (f"{commit}: {', '.join(dict.fromkeys(labels))}" for commit, labels in by_commit.items())
        text = f"Commits {'; '.join(parts)}."
    return f"{text} {table['missing']} cells failed and are left out." if table["missing"] else text


def markdown(result: Mapping[str, Any]) -> str:
    """All tables over all streams, in Markdown."""
    blocks = []
    for table in result["tables"]:
        columns, rows = overview(table)
        blocks += [f"**{title(table)}**", _grid(columns, rows)]
        columns, rows = overview_by_last(table)
        blocks += [_grid(columns, rows)] if rows else []
        blocks += [origin(table), *_warning(table)]
    return "\n\n".join([*blocks, NOTE]) + "\n"


def stream_markdown(result: Mapping[str, Any]) -> str:
    """For each table a table per stream with all columns, in Markdown."""
    blocks = []
    for table in result["tables"]:
        blocks.append(f"## {table['title'] or table['name']}")
        for one in table["streams"]:
            blocks += [title(table, one["stream"]), _grid(stream_columns(table), [printed(row) for row in one["rows"]])]
            rows = [printed_by_last(row) for row in one["rows"] if by_last(row)]
            blocks += [_grid(by_last_columns(), rows)] if rows else []
        blocks += [origin(table), *_warning(table)]
    return "\n\n".join([*blocks, NOTE]) + "\n"


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *rows))


def _warning(table: Mapping[str, Any]) -> list[str]:
    return [table["warning"]] if table["warning"] else []


def _labelled(row: Mapping[str, Any], strategy: str) -> str:
    """The label of a row. strategy: its name as it is to be written."""
    return strategy + row["label"].removeprefix(row["strategy"]) + (" (bound)" if row["bound"] else "")


def _beside(row: Mapping[str, Any], digits: int = 3) -> str:
    """The difference, with a * if interval and p-value agree.

    With few streams the p-value comes from flipping runs and is too small (`statistics.paired_difference`).
    """
    beside = row["beside"]
    if beside is None:
        return ""
    return _interval(beside, digits) + (" *" if beside["p_holm"] < 0.05 and not beside["low"] <= 0 <= beside["high"] else "")


def _interval(value: Mapping[str, float], digits: int = 3) -> str:
    if not math.isfinite(value["estimate"]):
        return ""
    low, high = _number(value["low"], digits), _number(value["high"], digits)
    return f"{_number(value['estimate'], digits)} [{low}, {high}]"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("0.", ".", 1)


def _mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [row[name] for row in rows if row[name] is not None]
    return sum(known) / len(known) if known else None


def _rounded(value: float | None, unit: float) -> str:
    """value / unit as a whole number from 10 on, else with two digits."""
    if value is None:
        return ""
    return f"{value / unit:.0f}" if value >= 10 * unit or value == 0 else f"{value / unit:.2g}".removeprefix("0")
