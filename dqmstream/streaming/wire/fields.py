"""Numbers and texts of a message, each accepted in one spelling only."""

from __future__ import annotations

import re
from math import isnan, nan

from dqmstream.lumisection import check_source
from dqmstream.streaming.wire.undecodable import Undecodable, quote

NS_PER_MS = 1_000_000

WHOLE = re.compile(rb"[0-9]{1,10}")
REAL = re.compile(rb"[0-9.eE+-]{1,32}|nan")


def read_whole(name: str, text: bytes) -> int:
    """The number in ASCII digits. Python's `int` would also accept spaces, signs, underscores and other scripts."""
    if WHOLE.fullmatch(text) is None:
        raise Undecodable(f"{name} is {quote(text)}, not a whole number")
    return int(text)


def read_real(name: str, text: bytes) -> float:
    if REAL.fullmatch(text) is None:
        raise Undecodable(f"{name} is {quote(text)}, not a real number")
    return canonical(float(text))


def read_text(name: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise Undecodable(f"{name} is {quote(text)}, not UTF-8") from error


def checked_source(source: str) -> str:
    """The dataset and monitoring element. Raises Undecodable where it is too long or not printable."""
    try:
        check_source(source)
    except ValueError as error:
        raise Undecodable(str(error)) from error
    return source


def canonical(number: float) -> float:
    """The number with -0.0 as 0.0 and every NaN as the same NaN: its bytes enter a row's content hash."""
    return nan if isnan(number) else number + 0.0
