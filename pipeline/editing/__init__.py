"""Edit codes: directions in W and W+, fitting them, edited tables, pictures and animations."""
