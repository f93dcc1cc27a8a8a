"""The published UCIT -> a stream: `python -m data_prep.ucit`. See data_prep/README.md."""
