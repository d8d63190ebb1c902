"""What a comparison means, in plain words: the verdict, and the warnings that limit it."""

from __future__ import annotations

import numpy as np

from dqmstream.experiments.compare.differences import Ground
from dqmstream.experiments.compare.findings import Findings
from dqmstream.experiments.compare.separation import MIN_SPAN, Separation

UNSEEN = (
    "Not seen: a factor common to all channels, which is luminosity or calibration; a change of gain of a channel that fires "
    "in nearly every event; a fault that comes and goes within a run."
)

_WHY_BY_RING = {
    Ground.LEVEL: "Where the runs share conditions, these hardly move, so no response to pileup can be fitted.",
    Ground.APART: "The runs hardly share conditions ({overlap:.0%} of the lumisections), so no response can be fitted to both.",
    Ground.SHORT: "The runs share too few lumisections with the same conditions to fit a response to pileup.",
}
_BY_RING = (
    "Channels are compared with their rings instead: a change that a whole ring shares is not seen, and a channel far from its "
    "ring has a larger error."
)


def verdict(found: Findings) -> str:
    """Whether the runs differ, and whether that is the detector or luminosity."""
    if not found.comparable:
        return (
            f"These runs cannot be compared: only {int(np.isfinite(found.channel_tests.p).sum())} of "
            f"{len(found.channel_tests.p)} channels can be tested, and nothing is known of the others. Choose longer runs, or "
            "runs closer in pileup."
        )
    if found.separation is None:
        channels, boxes = int(found.channel_tests.changed.sum()), int(found.box_tests.changed.sum())
        if channels or boxes:
            return f"{_number(channels, 'channel')} and {_number(boxes, 'readout box')} changed between these runs."
        return "No channel is found to have changed between these runs."
    changed = bool(found.channel_tests.changed.any() or found.box_tests.changed.any())
    return told_apart(found.separation, changed=changed, by_ring=found.by_ring)


def told_apart(separation: Separation, *, changed: bool, by_ring: bool) -> str:
    """What the AUC by channels and the AUC by luminosity mean together.

    changed: whether a channel or a readout box is found to have changed. by_ring: as `Findings.by_ring`.
    """
    channels, luminosity = separation.channels, separation.luminosity
    if luminosity.above_chance:
        return (
            f"Luminosity alone tells these runs apart (AUC {luminosity.value:.3f}), so an AUC proves nothing about the "
            "detector: judge by the channels that changed "
            + ("against their rings." if by_ring else "under the same conditions.")
        )
    if channels.above_chance and channels.value <= luminosity.value:
        return (
            f"The channels tell these runs apart (AUC {channels.value:.3f}) no better than luminosity alone "
            f"({luminosity.value:.3f}, within its error of chance): this is no sign of a change in the detector."
        )
    if channels.above_chance:
        return (
            f"The channels tell these runs apart (AUC {channels.value:.3f}) and luminosity alone does not "
            f"({luminosity.value:.3f}): "
            + ("the channels differ." if changed else "yet no channel by itself is found to have changed.")
        )
    if changed:
        return "No single lumisection tells these runs apart; the changes show over the whole runs only."
    return "Nothing tells these runs apart: neither their channels nor luminosity alone."


def warnings(found: Findings) -> list[str]:
    """What limits the verdict, most of all what could not be seen."""
    notes = list(found.pair.notes)
    if found.by_ring:
        notes.append(_WHY_BY_RING[found.ground].format(overlap=found.overlap) + " " + _BY_RING)
    if found.separation is None:
        least = MIN_SPAN * found.pair.samples[0].scale
        notes.append(
            f"There is no AUC: both runs must span {least} lumisections, and something must have counted in half of them."
        )
    if not found.by_ring and found.overlap < 0.5:
        notes.append(
            f"The runs share conditions only in part: {found.common[0]} and {found.common[1]} lumisections are compared, and "
            "changes outside them are not seen."
        )
    for name, dark, read in zip(found.pair.names, found.pair.dark, found.pair.lumisections, strict=True):
        if dark:
            notes.append(
                f"{dark} of {read} lumisections of {name} are left out: nothing counted, or the number of events is unknown."
            )
    if untested := int(np.isnan(found.channel_tests.p).sum()):
        notes.append(
            f"{untested} channels could not be tested: they count too little, or in nearly every event"
            + (", or stand too far from their ring." if found.by_ring else ".")
        )
    return notes


def _number(count: int, what: str) -> str:
    """For instance 1 channel, 2 readout boxes."""
    return f"{count} {what}" if count == 1 else f"{count} {what}{'es' if what.endswith('x') else 's'}"
