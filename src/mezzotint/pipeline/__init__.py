"""What a user asks for: request, system, picture."""
