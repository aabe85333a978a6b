"""The languages that clients speak, each a thin translation of the one `Request`."""
