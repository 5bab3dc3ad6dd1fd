"""The model that is trained: loading it, the places that are read, reading it, what it says."""
