"""Readers of programs, from the user's file or object to `partitioner.host.mil`."""
