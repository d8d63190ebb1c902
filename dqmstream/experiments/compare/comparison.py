"""A comparison of two runs as its user sees it: in words, as tables, as JSON and as a map."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from dqmstream.experiments.compare.figure import draw_comparison
from dqmstream.experiments.compare.findings import Findings
from dqmstream.experiments.compare.output import as_json, box_name
from dqmstream.experiments.compare.significance import ChangeTests
from dqmstream.experiments.compare.verdict import verdict, warnings
from dqmstream.experiments.json_numbers import nan_as_null

SHOWN = 10
"""Changed channels that the representations list."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Findings):
    """What differs between run A and run B."""

    @property
    def verdict(self) -> str:
        """Whether the runs differ, and whether that is the detector or luminosity."""
        return verdict(self)

    @property
    def warnings(self) -> list[str]:
        """What limits the verdict."""
        return warnings(self)

    @property
    def channels(self) -> xr.Dataset:
        """All channels that count in a run, by falling |pull|; those that could not be tested come last.

        Coordinates along `channel`: ieta, iphi, depth, rbx (readout box, -18..18). Variables: ratio (response in B over that in
        A), error (of the ratio), pull, p, q (p adjusted for the false-discovery rate), changed (q is at most the rate), state
        ("", "changed", "dead" or "alive").
        """
        order, channels = self.channel_tests.order, self.pair.channels
        places = {"ieta": channels.ieta, "iphi": channels.iphi, "depth": channels.depth, "rbx": channels.box}
        table = _table("channel", self.channel_tests, order, {name: values[order] for name, values in places.items()})
        return table.assign(state=("channel", self.states[order]))

    @property
    def boxes(self) -> xr.Dataset:
        """All readout boxes, by falling |pull|.

        Coordinate along `box`: rbx (-18..18). Variables as in `channels` but for state, and channels: how many are in the test.
        """
        order = self.box_tests.order
        table = _table("box", self.box_tests, order, {"rbx": self.box_names[order]})
        return table.assign(channels=("box", self.box_channels[order]))

    def to_json(self) -> dict[str, Any]:
        """The findings as `dqmstream compare --json` prints them; null stands for numbers that are not finite."""
        found: dict[str, Any] = nan_as_null(as_json(self))
        return found

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the change of each channel's response on a map of the detector. path: a PNG file to write as well."""
        return draw_comparison(None if path is None else Path(path), self)

    def __repr__(self) -> str:
        lines = [f"<Comparison of {self.pair.names[1]} against {self.pair.names[0]}>", *self._facts()]
        if changed := self._changed():
            lines.append("  ieta  iphi depth   ratio   error     pull  state")
            lines += [
                f"{one['ieta']:6d}{one['iphi']:6d}{one['depth']:6d}{one['ratio']:8.3f}{one['ratio_error']:8.3f}"
                f"{one['pull']:9.1f}  {one['state']}"
                for one in changed
            ]
        return "\n".join([*lines, *(f"Warning: {note}" for note in self.warnings)])

    def _repr_html_(self) -> str:
        names = [escape(name) for name in self.pair.names]
        facts = "".join(f"<p>{escape(fact)}</p>" for fact in self._facts())
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.warnings)
        rows = "".join(
            f"<tr><td>{one['ieta']}</td><td>{one['iphi']}</td><td>{one['depth']}</td><td>{one['ratio']:.3f}</td>"
            f"<td>{one['ratio_error']:.3f}</td><td>{one['pull']:+.1f}</td><td>{one['state']}</td></tr>"
            for one in self._changed()
        )
        columns = ("ieta", "iphi", "depth", "ratio", "error", "pull", "state")
        head = "<tr>" + "".join(f"<th>{column}</th>" for column in columns) + "</tr>"
        table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>" if rows else ""
        return (
            f"<div><h4>{names[1]} against {names[0]}</h4>{facts}{table}"
            + (f"<details><summary>Warnings</summary><ul>{notes}</ul></details>" if notes else "")
            + "</div>"
        )

    def _facts(self) -> list[str]:
        """The verdict, what changed and how much of it is listed, and both AUC."""
        tests, boxes = self.channel_tests, self.box_tests
        moved = [box_name(int(self.box_names[k])) for k in boxes.order if boxes.changed[k]]
        changed = int(tests.changed.sum())
        facts = [
            self.verdict,
            f"{changed} of {int(np.isfinite(tests.p).sum())} channels changed ({int(self.died.sum())} dead, "
            f"{int(self.woke.sum())} alive again), at a false-discovery rate of {self.rate:g}"
            + (f"; the first {SHOWN} are listed, .channels holds all" if changed > SHOWN else ""),
            f"{len(moved)} of {int(np.isfinite(boxes.p).sum())} readout boxes changed"
            + (f": {', '.join(moved)}" if moved else ""),
        ]
        if self.separation is not None:
            facts += [
                f"AUC {what}: {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"
                for what, auc in (
                    ("by channels", self.separation.channels),
                    ("by luminosity alone", self.separation.luminosity),
                )
            ]
        return facts

    def _changed(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = as_json(self)["changed"][:SHOWN]
        return listed


def _table(over: str, tests: ChangeTests, order: np.ndarray, places: dict[str, np.ndarray]) -> xr.Dataset:
    columns = {
        "ratio": tests.ratio,
        "error": tests.error,
        "pull": tests.pull,
        "p": tests.p,
        "q": tests.q,
        "changed": tests.changed,
    }
    return xr.Dataset(
        {name: (over, values[order]) for name, values in columns.items()},
        coords={name: (over, values) for name, values in places.items()},
    )
