"""The conversion of an exported program to a Core ML model, with Core ML Tools."""
