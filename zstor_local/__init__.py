"""zstor-local: local, private, self-healing storage behind one Unix socket."""

__version__ = "0.2.0"
