"""Files and folders, knowing nothing of models: whole or not at all, hashes, JSON, safetensors headers."""
