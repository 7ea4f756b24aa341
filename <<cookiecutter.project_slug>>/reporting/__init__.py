"""Report runs and sweeps, upload checkpoints, preview a run for `--dry_run`, predict files."""
