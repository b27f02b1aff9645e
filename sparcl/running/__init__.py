"""One cell from its settings to its record on disk."""
