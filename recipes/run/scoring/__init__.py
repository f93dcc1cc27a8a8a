"""Scorers that the recipe names over the stream's."""
