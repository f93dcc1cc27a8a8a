"""Learning rates and gate scale of every method, chosen alike: `python -m recipes.tune --help`."""
