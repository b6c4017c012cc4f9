"""Rewritings of a program before it is converted; results stay the same."""
