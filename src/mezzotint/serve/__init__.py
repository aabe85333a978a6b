"""A server: HTTP in one process, networks in another, JSON lines and bytes between them."""
