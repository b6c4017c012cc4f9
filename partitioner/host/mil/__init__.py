"""ML Programs as plain typed data."""
