"""Memory of this process as the operating system counts it."""

import resource
import sys


def peak_resident_bytes() -> int:
    """The most memory this process has held at a time."""
    # ru_maxrss is in kilobytes on Linux and in bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
