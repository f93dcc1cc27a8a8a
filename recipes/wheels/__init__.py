"""Wheels for a machine without a network: collected on one that has it, installed on the other.

Needs pip and `packaging` only, so that it runs before anything else is installed.
"""
