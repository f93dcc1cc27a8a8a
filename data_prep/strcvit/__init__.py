"""The published StrCVIT -> a stream: `python -m data_prep.strcvit`. See data_prep/README.md."""

GENERATOR, VERSION = "data_prep.strcvit", "2"
REPOSITORY = "chanceche/StrCVIT_dataset"
MARKER = "<STRCVIT_IMAGE_ROOT>"
