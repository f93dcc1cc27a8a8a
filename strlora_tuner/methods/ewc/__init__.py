"""Elastic weight consolidation (arXiv 1612.00796, online): a callback beside any tuner."""
