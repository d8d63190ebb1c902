"""What is asked of an import of lumisections, once the files of golden JSON and conditions were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dqmstream.lumisection import MAX_EVENTS
from dqmstream.storage.labels.golden import Golden
from dqmstream.storage.labels.luminosity import LuminosityTable


@dataclass(frozen=True)
class ImportRules:
    """Which lumisections of the files are imported, and as what.

    dtype: of the archive. depths: of the archive, None where it is new and the user gave none. run: number of the only file,
    where its name has none. interpolated: mark every row as interpolated, as in the two published files. crop: leave out
    counts beyond |ieta| 32. golden: import only lumisections that it names. luminosity: tables of events and pileup.
    source: dataset and monitoring element to file everything under. stored_source: the archive's own. scratch: folder for large
    temporary files. max_events: most events of a lumisection.
    """

    dtype: np.dtype
    depths: int | None = None
    run: int | None = None
    interpolated: bool = False
    crop: bool = False
    golden: Golden | None = None
    luminosity: Sequence[LuminosityTable] = ()
    source: str | None = None
    stored_source: str = ""
    scratch: Path | None = None
    max_events: float = MAX_EVENTS
