"""Receptive-field analysis of networks, and its proof."""
