"""What is said of figures: the interval of chance, and the headline that follows from a summary."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from dqmstream.experiments.report.panels.headline import headline
from dqmstream.experiments.report.summary import SummaryRow, guessing_interval, guessing_p_value


def test_the_chance_interval_is_the_binomials_own() -> None:
    tested = np.array([30, 30, 30, 30])
    low, high = guessing_interval(tested)
    assert low is not None and high is not None
    masses = [comb(120, k) * 0.25**k * 0.75 ** (120 - k) for k in range(121)]
    low_count, high_count = round(low * 120), round(high * 120)
    assert sum(masses[:low_count]) < 0.025 <= sum(masses[: low_count + 1])
    assert sum(masses[:high_count]) < 0.975 <= sum(masses[: high_count + 1])
    assert guessing_p_value(high_count / 120, tested) == pytest.approx(sum(masses[high_count:]))
    wide = guessing_interval(tested, shares=4)
    assert wide[0] is not None and wide[1] is not None and wide[0] < low < high < wide[1]
    assert guessing_interval(np.array([60])) == (None, None)


def row(name: str, kind: str, accuracy: float) -> SummaryRow:
    tested = np.full(4, 60)
    low, high = guessing_interval(tested)
    assert low is not None and high is not None
    verdict = "above chance" if accuracy > high else "below chance" if accuracy < low else "at chance"
    chance = guessing_p_value(accuracy, tested)
    return SummaryRow(name, kind, name, "", 4, 240, accuracy, 0.5, 0.0, 0.0, 0.25, low, high, chance, verdict, None, None, None)


@pytest.mark.parametrize(
    ("rows", "title", "says"),
    [
        ([("live", "learner", 0.24), ("ring_means", "luminosity", 0.9)], "Nothing found", "Luminosity alone tells runs apart"),
        ([("live", "learner", 0.32)], "Hardly anything found", "live 0.320"),
        ([("live", "learner", 0.25), ("gain_map", "baseline", 0.9)], "The runs differ", "although the runs differ: live"),
        ([("live", "learner", 0.9), ("ring_means", "luminosity", 0.8)], "The runs differ", "only what goes beyond"),
    ],
)
def test_the_headline_is_plain(rows: list[tuple[str, str, float]], title: str, says: str) -> None:
    found, words = headline([row(*one) for one in rows])
    assert found == title
    assert says in " ".join(words)
