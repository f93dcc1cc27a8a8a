"""StrLoRA: experts chosen by the instruction, weighed by each token, held by a stability term."""
