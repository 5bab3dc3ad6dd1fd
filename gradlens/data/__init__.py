"""Rows to train on, and the names `demo:...`."""
