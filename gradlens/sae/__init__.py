"""Training and verifying dictionaries: `gradlens sae`."""
