"""The tasks of each stage: read from image and store, call the science core, write to the store."""
