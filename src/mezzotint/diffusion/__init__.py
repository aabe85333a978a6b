"""Maths: no models, no files, no images."""
