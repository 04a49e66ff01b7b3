"""Measures of decoded speech and of codes: a file for each kind, with the records of its measures.

registry.py lists them; a new measure is a function, its record beside it, and a line there.
"""
