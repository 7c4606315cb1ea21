"""Shared foundations: tile geometry, records, the run specification, paths, errors, timeouts, resource usage."""
