"""One step of training: milestones, and agreement between processes."""
