"""Who does what next, decided without torch, Ray or files: the scheduler, its queues, and the messages it exchanges."""
