"""Concepts: files of them, features and detectors fitted from their examples, checkers that tell whether a text shows one."""
