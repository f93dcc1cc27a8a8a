"""Learning without forgetting (arXiv 1606.09282): the chunk before answers too, and is followed."""
