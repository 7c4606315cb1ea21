"""Test suites that every plug-in must pass, and small inputs and stores for tests."""
