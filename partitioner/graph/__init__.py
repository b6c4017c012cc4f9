"""Helpers that read and edit fx graphs."""
