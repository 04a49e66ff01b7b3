"""All measures, in the order of the tables, and the groups that they are computed in."""

from dmcodec.metrics import (
    codes,
    distillmos,
    intelligibility,
    opinion,
    pitch,
    probe,
    signal,
    speaker,
    words,
)

_ALL = (
    words.WORDS,
    probe.CONTENT,
    distillmos.DISTILLMOS,
    opinion.VISQOL,
    opinion.VISQOL_AUDIO,
    intelligibility.STOI,
    opinion.PESQ,
    opinion.DNSMOS,
    opinion.UTMOS,
    speaker.SPEAKER,
    signal.SIGNAL,
    pitch.PITCH,
    codes.CODES,
)
GROUPS = {group.name: group for group in _ALL}
"""Groups by name."""
MEASURES = {measure.name: measure for group in _ALL for measure in group.measures}
"""Every measure by name."""
