"""The networks, how they are run, and what they cost."""
