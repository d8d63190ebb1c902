"""The scale of maps as they come: counts, shares of events, which are multiplied back into counts, or values of another scale.

A channel counts events, so a count is whole. Maps divided by the number of events hold shares from 0 to 1. A share times the
events is whole again, up to the rounding of the file; that is what tells a share from other values between 0 and 1, such as a
map divided by its largest count. Shares are never filed: they lose the number of events, on which every error depends.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from dqmstream.lumisection import ROUNDING_EVENTS
from dqmstream.storage.layout import Quality

LARGEST_SOUGHT = 10_000
"""Numbers of events that are tried, for a message, on a map whose own number does not fit."""

WHOLE = 1e-3
"""How far a share times its events may be from a whole number, apart from the rounding of the share itself."""

TELLING = 0.1
"""Above this rounding of the products, whole numbers cannot be told from others."""


_LOOKED_AT = 8


class Scale(StrEnum):
    """What the values of a run's maps are.

    SHARES: shares of events, multiplied back into counts. INTERPOLATED: between lumisections, as the user says. NOT_WHOLE:
    scaled by an unknown factor, or interpolated and not marked so. MIXED: some lumisections are of one scale, some of another.
    """

    COUNTS = "counts"
    SHARES = "shares of events"
    INTERPOLATED = "interpolated"
    NOT_WHOLE = "not whole"
    MIXED = "mixed"


def scale_of_rows(quality: np.ndarray) -> Scale:
    """The scale of lumisections with these flags (`layout.Quality`), (n,).

    Empty lumisections are alike at every scale and have no flag, so up to half of a run may have none.
    """
    if (quality & Quality.INTERPOLATED).any():
        return Scale.INTERPOLATED if (quality & Quality.INTERPOLATED).all() else Scale.MIXED
    flags = ((Quality.FROM_SHARES, Scale.SHARES), (Quality.NOT_WHOLE, Scale.NOT_WHOLE))
    found = [(scale, rows) for flag, scale in flags if (rows := np.count_nonzero(quality & flag))]
    if not found:
        return Scale.COUNTS
    scale, rows = found[0]
    return scale if len(found) == 1 and 2 * rows >= len(quality) else Scale.MIXED


def whole_rows(maps: np.ndarray) -> np.ndarray:
    """Which maps hold whole numbers only: bool (n,), from (n, ...)."""
    if maps.dtype.kind != "f":
        return np.ones(len(maps), bool)
    flat = maps.reshape(len(maps), -1)
    return np.asarray((flat == np.rint(flat)).all(axis=1))


def counts_of_shares(shares: np.ndarray, n_events: float) -> np.ndarray:
    """Counts of a map of shares: whole numbers, float32, in its shape. Raises ValueError as `events_of_shares` does."""
    events, _ = events_of_shares(shares, n_events)
    return multiplied(shares, events)


def multiplied(shares: np.ndarray, events: np.ndarray | float) -> np.ndarray:
    """Shares (...) times events (which broadcast), rounded to whole numbers: float32."""
    return np.rint(shares.astype(np.float64) * events).astype(np.float32)


def events_of_shares(shares: np.ndarray, n_events: float) -> tuple[float, float]:
    """The number of events that makes a map of shares whole counts, and how far the products are from whole at most.

    shares: one map, any shape, as read. n_events: of the lumisection. Where that is the product of a rate and the length of a
    lumisection it may be off by 1, so the whole numbers near it are tried too. The events of an empty map are 0.

    Raises ValueError, with the reason and what to do, where the events are unknown, or contradict the shares.
    """
    flat = np.asarray(shares, np.float64)[shares > 0]
    if not flat.size:
        return 0.0, 0.0
    check_known(float(flat.max()), n_events)
    rounding = float(np.finfo(shares.dtype).eps) if shares.dtype.kind == "f" else 0.0
    if rounding * n_events > TELLING:
        raise ValueError(
            f"it holds shares of events in {shares.dtype}, which has too few digits to give counts of {n_events:.15g} events "
            "back: give float32 or float64"
        )
    least = np.inf
    for events in _near(n_events):
        off = _off_whole(flat, events)
        if off <= WHOLE + rounding * events:
            return events, off
        least = min(least, off)
    raise ValueError(_contradiction(flat, n_events, least, rounding))


def check_known(largest: float, n_events: float) -> None:
    """Raise ValueError, with the reason and what to do, where the events of a map of shares are unknown or 0."""
    if not n_events > 0:
        known = "unknown" if np.isnan(n_events) else f"{n_events:.15g}"
        raise ValueError(
            f"it holds shares of events (the largest value is {largest:.6g}), and its number of events is {known}: "
            "give counts, or the events beside the shares"
        )


def _near(n_events: float) -> list[float]:
    """The number of events, and the whole numbers near it, nearest first."""
    near = np.arange(np.ceil(n_events - ROUNDING_EVENTS), np.floor(n_events + ROUNDING_EVENTS) + 1)
    return [n_events, *near[np.argsort(np.abs(near - n_events), kind="stable")].tolist()]


def _off_whole(shares: np.ndarray, events: float) -> float:
    counts = shares * events
    return float(np.abs(counts - np.rint(counts)).max())


def _contradiction(shares: np.ndarray, n_events: float, off: float, rounding: float) -> str:
    """Why shares and events do not belong together, and what to do. shares: above 0, (k,)."""
    said = f"its values are shares of events, and {n_events:.15g} events do not make them whole counts (off by {off:.2g})"
    if shares.max() == 1.0:
        return f"{said}; the largest value is exactly 1, as where a map is divided by its largest count: give counts"
    events = np.arange(1.0, LARGEST_SOUGHT + 1)
    few = np.outer(events, shares[:: -(-len(shares) // _LOOKED_AT)])  # these rule out nearly all numbers
    for one in events[(np.abs(few - np.rint(few)) <= WHOLE + rounding * events[:, None]).all(axis=1)].tolist():
        if _off_whole(shares, one) <= WHOLE + rounding * one:
            return f"{said}, but {one:.0f} events do: give the events of these maps (a trigger may be that of another data set)"
    return (
        f"{said}, nor does any number up to {LARGEST_SOUGHT}: give counts; where rows are interpolated, say so (--interpolated)"
    )
