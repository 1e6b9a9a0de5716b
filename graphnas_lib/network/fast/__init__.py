"""CPU fast paths of a network that we built ourselves."""
