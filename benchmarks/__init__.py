"""Measurements: ratios in one run, ours beside a peer or a limit, interleaved; see each module."""
