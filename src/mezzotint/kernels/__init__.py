"""The same modules, executed faster; chosen by hardware, never imported by models."""
