"""The frozen dictionary: what it is, its formats, fast products with it, other things that serve as one, and labels of its features."""
