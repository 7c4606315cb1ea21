"""Simulated skies, galaxies and images whose truth is known."""
