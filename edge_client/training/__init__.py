"""The server's tasks, carried out in slices."""
