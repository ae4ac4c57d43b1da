"""A simulated world: disks that tear and fail, a clock, randomness and threads that follow from one seed."""
