"""How fast it is here: the daemon beside straight-line programs that do the same work (`zstor bench`)."""
