"""What Core ML takes, what it needs for that, and why the rest stays outside."""
