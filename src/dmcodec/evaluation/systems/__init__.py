"""What can be evaluated: codecs that run in torch, programs, folders of finished sound."""
