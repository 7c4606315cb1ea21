"""Readers of image formats, one module for each family."""
