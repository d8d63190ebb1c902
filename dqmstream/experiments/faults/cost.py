"""What a detector costs: numbers that it keeps, their bytes, and operations to score a lumisection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Cost:
    """numbers: weights and other numbers that scoring reads. kept_bytes: bytes kept to score and to go on learning. flops:
    floating-point operations to score a lumisection, matrix products and convolutions alone; None where they are not counted.
    """

    numbers: int
    kept_bytes: int
    flops: float | None = None

    @classmethod
    def of_arrays(cls, arrays: Sequence[np.ndarray], flops: float | None = None) -> Cost:
        """The cost of a detector that keeps these arrays."""
        return cls(sum(array.size for array in arrays), sum(array.nbytes for array in arrays), flops)
