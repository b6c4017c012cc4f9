"""From what users have in hand to `partitioner.host.mil`."""
