"""Reports on what a lowering did."""
