"""A run as `gradlens run` makes it: its inputs, its checks, the loop of one rank, checkpoints, studies of several arms."""
