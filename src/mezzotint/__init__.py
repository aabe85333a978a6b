"""The Stable Diffusion family: generate, train, measure, explain, serve."""
