"""Checks a stream before any GPU hour: `python -m data_prep.check DIR`. See data_prep/README.md."""

GENERATOR, VERSION = "data_prep.check", "1"
