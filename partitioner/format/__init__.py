"""Byte formats of a delegate: the blob, and the mlpackage inside it."""
