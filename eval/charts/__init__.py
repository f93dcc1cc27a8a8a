"""Plots and tables of the pages."""
