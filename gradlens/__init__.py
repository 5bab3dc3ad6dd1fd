"""gradlens: which concepts every optimizer step teaches, and control over them. See README.md for the three ways in."""

__version__ = "0.1.0"
