"""The machine below the sandboxes: what it has, what is missing, how to get it."""
