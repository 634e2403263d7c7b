"""The decoder: one parameterised model, its layers, and the table of families it knows."""
