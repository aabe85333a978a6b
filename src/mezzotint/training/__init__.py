"""One loop that trains every part."""
