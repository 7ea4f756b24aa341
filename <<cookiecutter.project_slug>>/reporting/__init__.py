"""Report a run: progress bar, trackers, pictures, model card, uploads, and the dry run."""
