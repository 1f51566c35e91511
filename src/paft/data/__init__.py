"""Sources of rows, chat templates, tokens with label masks, and the prepared files that training reads."""
