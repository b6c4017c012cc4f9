"""Fake quantizers: modules that round in training as the program will."""
