"""What a lowering did."""
