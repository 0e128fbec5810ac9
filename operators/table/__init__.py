"""The Parquet table: its schema, its parts, its lock, and the folding of camera hours."""
