"""How good codecs are: every system on the same clips, measured alike, with intervals."""
