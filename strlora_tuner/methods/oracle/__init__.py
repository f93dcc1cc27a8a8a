"""The oracle: a LoRA a task, and the task is given. The upper bound of routing, no method."""
