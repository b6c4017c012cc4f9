"""From an exported program to a Core ML model, by Core ML Tools."""
