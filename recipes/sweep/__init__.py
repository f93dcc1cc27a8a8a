"""One recipe over methods, seeds, streams and values: planned, run, watched and chosen from."""
