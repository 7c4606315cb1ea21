"""The pipeline: from a run specification to a finished store."""
