"""The commands of the terminal, the options they share, and what they print."""
