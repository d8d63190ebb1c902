"""Errors that a user can cause or meet, each with the exit code of the command line.

Each message is one line that says what is wrong, where, and what to do. Any other exception is a bug in dqmstream and ends with
a traceback and exit code 1.
"""


class DqmstreamError(Exception):
    """Base of all errors that are reported in one line."""

    exit_code = 1


class InputError(DqmstreamError):
    """A file, a flag or a setting that cannot be used (exit code 3)."""

    exit_code = 3


class BrokerError(DqmstreamError):
    """The broker cannot be reached, does not have the topic, or has it in a form that cannot be read (exit code 4)."""

    exit_code = 4


class ArchiveError(DqmstreamError):
    """The archive is missing, damaged, too new, or of another geometry or dtype; or the disk is full, read-only or failing
    (exit code 5)."""

    exit_code = 5


class DataLostError(DqmstreamError):
    """The broker does not have the offsets that the archive needs next (exit code 6)."""

    exit_code = 6


class StateError(DqmstreamError):
    """The learner's state is damaged or of another model (exit code 7)."""

    exit_code = 7


class StateInUseError(StateError):
    """Another process holds the learner's state (exit code 8)."""

    exit_code = 8


class OutOfMemoryError(DqmstreamError):
    """The machine, or this process by its limit, has no memory left (exit code 11)."""

    exit_code = 11


class OutputError(DqmstreamError):
    """Standard output cannot be written (exit code 3)."""

    exit_code = 3


class OutputClosedError(OutputError):
    """The program that read standard output has ended (exit code 141, as in a shell)."""

    exit_code = 141


UNFILED = 9
"""Exit code of a `consume` that had to end while the disk did not accept what was read."""

NOT_COMPARABLE = 10
"""Exit code of a comparison of two runs that leaves most channels untested. Its findings are printed."""

EXIT_CODES = {
    0: "done",
    1: "a bug in dqmstream: a traceback is printed",
    2: "the command line is wrong",
    3: "a file, flag or setting that cannot be used",
    4: "the broker cannot be reached, has no such topic, or has it in a form that cannot be read",
    5: "the archive is missing, damaged, too new, or of another geometry or dtype; or the disk is full, read-only or fails",
    6: "offsets that the archive needs are gone from the broker",
    7: "the learner's state is damaged or of another model, or the learner was given up",
    8: "another process holds the learner's state",
    UNFILED: "the disk did not accept what was read before the service had to end: it will be read again",
    NOT_COMPARABLE: "two runs that cannot be compared: most channels are untested; the findings on the others are printed",
    OutOfMemoryError.exit_code: "no memory is left: what was not filed is read again at the next start",
    130: "a second SIGINT ended it at once: what was not filed will be read again",
    143: "a second SIGTERM ended it at once: what was not filed will be read again",
    141: "the program that read its output has ended: only the output is incomplete",
}
