"""The instruction vector: whose tokens count, which tokens it routes, and what a cache keeps."""
