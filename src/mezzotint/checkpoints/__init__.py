"""Files <-> state dicts."""
