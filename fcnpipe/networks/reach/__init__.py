"""Receptive-field analysis of networks, and the proof that tiles with the halo found are exact."""
