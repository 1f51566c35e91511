"""A finished cell leaves the store: as a Hugging Face folder with a model card, for the hub, or as GGUF."""
