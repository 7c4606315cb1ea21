"""Network architectures: one module for each."""
