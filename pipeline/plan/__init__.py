"""Config, checkpoint and machine become one resolved plan of a run."""
