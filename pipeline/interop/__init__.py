"""Exchange W+ codes with other programs: export, import, and their file formats."""
