"""Corpora: lists of utterances in the formats that people keep them, and their sound."""
