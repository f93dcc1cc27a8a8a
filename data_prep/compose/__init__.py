"""Files of single tasks -> a stream: `python -m data_prep.compose`. See data_prep/README.md."""

GENERATOR, VERSION = "data_prep.compose", "1"
