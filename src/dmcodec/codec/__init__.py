"""The codec: waveform to codes and back. Torch only; nothing here knows training or files."""
