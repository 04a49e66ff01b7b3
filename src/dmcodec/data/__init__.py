"""Training segments and validation clips, as pure functions of a seed and a number."""
