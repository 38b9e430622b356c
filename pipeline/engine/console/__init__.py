"""Console of a job: its progress while it runs, and its summary at the end."""
