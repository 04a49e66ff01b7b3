"""Discriminators: networks that tell decoded waveforms from original ones."""
