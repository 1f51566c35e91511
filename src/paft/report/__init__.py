"""What a store has found out: a row per evaluation, figures, one HTML page."""
