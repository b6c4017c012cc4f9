"""What a user asks of a lowering, read and checked once."""
