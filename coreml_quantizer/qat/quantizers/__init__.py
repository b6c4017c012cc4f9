"""Fake quantizers: modules that round in training as the converted program will."""
