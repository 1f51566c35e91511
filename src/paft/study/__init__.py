"""The second study (docs/study2.md): its power beforehand, and its tables and figure from committed files alone."""
