"""What is done, as a graph of stages: identities and keys. Loads no torch."""
