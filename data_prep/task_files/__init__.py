"""A benchmark with a training and a test file a task -> a stream; the router data of MR-LoRA."""
