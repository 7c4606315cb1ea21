"""Simulation of skies, galaxies and blurred images with exact ground truth."""
