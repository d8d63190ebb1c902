"""What a network's outputs stand for: the runs that are told apart, or fixed labels (good, faulty).

Experiences come in groups of lumisections with one label; groups are numbered through the stream. A gradient method
(`learners.gradient.method`) is written in groups, and so serves both tasks.
"""

from __future__ import annotations

from typing import Protocol


class Task(Protocol):
    """How groups, experiences and outputs belong together.

    name: of `--task`. first: number of the first experience at which a network is trained.
    """

    @property
    def name(self) -> str: ...

    @property
    def first(self) -> int: ...

    def outputs(self, experiences: int) -> int:
        """Outputs of the network after so many experiences."""
        ...

    def groups(self, experience: int) -> list[int]:
        """Numbers of the groups of an experience."""
        ...

    def label(self, group: int) -> int:
        """The output that stands for a group."""
        ...


class RunTask:
    """Class-incremental: experience i is run i, one group with an output of its own. The first run has no training."""

    name = "runs"
    first = 1

    def outputs(self, experiences: int) -> int:
        return experiences

    def groups(self, experience: int) -> list[int]:
        return [experience]

    def label(self, group: int) -> int:
        return group


class LabelTask:
    """Domain-incremental: experience i is period i, its good and its faulty lumisections are groups; the outputs are fixed."""

    name = "labels"
    first = 0
    labels = ("good", "faulty")

    def outputs(self, experiences: int) -> int:
        return len(self.labels)

    def groups(self, experience: int) -> list[int]:
        return [len(self.labels) * experience + label for label in range(len(self.labels))]

    def label(self, group: int) -> int:
        return group % len(self.labels)


RUNS, LABELS = RunTask(), LabelTask()
