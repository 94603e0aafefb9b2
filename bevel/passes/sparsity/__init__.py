"""Which single weights and tiles become zero."""
