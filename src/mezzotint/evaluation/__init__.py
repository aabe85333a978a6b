"""How good the pictures are: numbers with their intervals, and the protocol that they belong to."""
