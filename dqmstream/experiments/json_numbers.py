"""Numbers in JSON, which has no NaN and no infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def nan_as_null(value: Any) -> Any:
    """The same value with None in place of NaN and infinity, at any depth; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: nan_as_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_as_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
