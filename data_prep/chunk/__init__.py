"""Anybody's data -> a stream: `python -m data_prep.chunk`. See `data_prep/README.md`."""

GENERATOR, VERSION = "data_prep.chunk", "2"
