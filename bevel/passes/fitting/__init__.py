"""What layers read, and how those that are left make up for what is gone: statistics and least squares."""
