"""MoELoRA (CoIN, arXiv 2403.08350): dense gates, softmax(R x) for every token."""
