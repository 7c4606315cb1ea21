"""Benchmarks of speed, memory and quality, each against a peer tool or a limit that is measured in the same run."""
