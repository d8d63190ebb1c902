"""Checks that every strategy must pass, for tests of a strategy of one's own. They need no test framework."""

from dqmstream.learners.checks.strategy import (
    MakeStrategy,
    assert_same_state,
    check_counts_its_memory,
    check_learns_a_run_again,
    check_learns_and_scores,
    check_resumes_to_the_same_bits,
    check_returns_to_its_states,
    check_same_seed_same_bits,
    check_strategy,
    check_watch_changes_nothing,
)
from dqmstream.learners.checks.streams import draw_run, make_stream, reader

__all__ = [
    "MakeStrategy",
    "assert_same_state",
    "check_counts_its_memory",
    "check_learns_a_run_again",
    "check_learns_and_scores",
    "check_resumes_to_the_same_bits",
    "check_returns_to_its_states",
    "check_same_seed_same_bits",
    "check_strategy",
    "check_watch_changes_nothing",
    "draw_run",
    "make_stream",
    "reader",
]
