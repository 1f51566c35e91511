"""Finished stages on disk: folders, locks, digests, files that appear whole; nothing here knows what a stage does."""
