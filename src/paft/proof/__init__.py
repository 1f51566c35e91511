"""A base is proved before it is used: which of the fast paths give its own results."""
