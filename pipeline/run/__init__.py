"""A run over an archive: the driver with its loop, its log and its summary, Ray, and the workers that Ray starts."""
