"""Questions about fx graphs, and edits of them."""
