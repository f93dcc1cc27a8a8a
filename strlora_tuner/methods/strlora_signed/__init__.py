"""Fixed gates: the signs (or the largest values) of a random map of the centred instruction."""
