"""A study: every table and figure of a document out of committed CSVs of runs."""
