"""Receptive-field analysis of networks, and the proof that tiles with the computed halo are exact."""
