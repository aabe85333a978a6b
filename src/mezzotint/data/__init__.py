"""Captioned image sets: read, filter with a card, bucket, cache latents."""
