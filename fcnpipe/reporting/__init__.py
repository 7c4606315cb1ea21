"""Progress, event log and report of a run."""
