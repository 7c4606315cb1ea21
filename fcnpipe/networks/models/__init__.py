"""Model files: bundled weights and exported programs."""
