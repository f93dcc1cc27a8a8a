"""SAME (arXiv 2602.01990): a router and experts that move little where earlier inputs lay."""
