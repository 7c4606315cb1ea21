"""Benchmarks of speed, memory and quality; each compares with a peer tool or a limit, interleaved in one run."""
