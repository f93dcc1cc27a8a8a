"""Fixtures shared with the tests of the embedded stream."""

from tests.data_prep.mini.conftest import tasks

__all__ = ["tasks"]
