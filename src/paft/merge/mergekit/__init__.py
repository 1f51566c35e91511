"""mergekit's YAML: read and run as mergekit runs it, and written for a merge of ours.

What a file says is held to mergekit 0.1.5, the release that the tests compare with.
"""
