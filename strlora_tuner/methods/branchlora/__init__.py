"""BranchLoRA (arXiv 2506.02041): one shared A, branches that freeze, a router a chunk."""
