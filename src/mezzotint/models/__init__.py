"""Networks: config in, tensors in, tensors out."""
