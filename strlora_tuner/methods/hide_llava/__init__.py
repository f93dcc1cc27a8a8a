"""HiDe-LLaVA: a LoRA a chunk; the top layer weighs them by the prompt, the others fuse them."""
