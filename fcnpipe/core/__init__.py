"""The ground: geometry of tiles, records, the run specification, errors."""
