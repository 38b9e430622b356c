"""Jobs: one program per file. Installed as `pipeline.jobs`, behind the command `restyle`."""
