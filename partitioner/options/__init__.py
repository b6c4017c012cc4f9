"""Options that a user gives to a lowering, read and checked once."""
