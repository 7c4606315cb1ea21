"""The shared suites that every plug-in must pass."""
