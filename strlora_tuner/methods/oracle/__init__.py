"""The oracle: a LoRA a task, and the task is told. The upper bound of routing, no method."""
