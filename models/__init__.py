"""The model that the repository ships: story generator, training script, and the folder it made."""
