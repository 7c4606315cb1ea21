"""Reporting on runs: observers, progress display, event log, run reports, thumbnails."""
