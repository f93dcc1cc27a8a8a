"""What fixed gates share, and what one LoRA for one instruction loses."""
