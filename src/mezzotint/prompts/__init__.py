"""Text -> tokens -> what the networks are conditioned on."""
