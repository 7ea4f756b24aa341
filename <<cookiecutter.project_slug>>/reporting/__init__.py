"""What a run tells: bar, trackers, pictures, the model card, and a look before it begins."""
