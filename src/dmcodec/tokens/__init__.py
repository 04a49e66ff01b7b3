"""Codes outside the model: the `.dmc` file and what language models read."""
