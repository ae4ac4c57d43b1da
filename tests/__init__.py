"""The tests of zstor-local; a package so that they may share the simulated world."""
