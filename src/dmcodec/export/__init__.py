"""Codecs as ONNX files: written with torch, run without."""
