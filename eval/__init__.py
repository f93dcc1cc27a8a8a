"""From predictions to conclusions: scorers, the matrix a[chunk, task], stream scores, the report.

Nothing here imports torch, so a laptop without a GPU stack can score and inspect a run.
"""
