"""The published CoIN -> a stream: `python -m data_prep.coin`. See data_prep/README.md."""
