"""Checks a stream before it costs GPU hours: `python -m data_prep.check DIR`."""

GENERATOR, VERSION = "data_prep.check", "1"
