"""Model files: safetensors bundles, exported programs, their headers, and loading by name."""
