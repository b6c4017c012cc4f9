"""Where quantizers stand, which of them share, and why."""
