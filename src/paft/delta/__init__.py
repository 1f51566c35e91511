"""What an adapter adds to a model: its factors, and how sparse it is."""
