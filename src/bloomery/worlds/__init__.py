"""Procedural data with exact truth, seeded and infinite, and the documentation of the running Python as a web."""
