"""What a model file says: its header, its shape, its statistics, and the equations over them. Nothing is run."""
