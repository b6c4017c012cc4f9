"""Questions about fx graphs, and rewritings of them before annotation."""
