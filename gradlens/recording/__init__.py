"""Runs on disk and where else records go: the run folder, finding runs, W&B and other trackers."""
