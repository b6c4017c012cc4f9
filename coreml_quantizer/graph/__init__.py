"""Analyses of FX graphs, and rewrites of them before annotation."""
