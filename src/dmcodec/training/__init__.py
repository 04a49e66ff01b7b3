"""Training a codec: an experiment file in, checkpoints and a codec folder out."""
