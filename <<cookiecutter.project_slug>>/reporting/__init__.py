"""Report a run: progress bar, trackers, pictures, model card, and the dry run."""
