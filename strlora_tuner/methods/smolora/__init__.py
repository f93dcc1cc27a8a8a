"""SMoLoRA (arXiv 2411.13949): experts for what is seen and experts for what is asked."""
