"""Slow weights: a moving average of an adapter that answers while training goes on beside it."""
