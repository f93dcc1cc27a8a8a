"""O-LoRA (arXiv 2310.14152): each chunk learns in a subspace orthogonal to those before it."""
