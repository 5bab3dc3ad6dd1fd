"""The benchmarks behind `gradlens bench`, and what only they need."""
