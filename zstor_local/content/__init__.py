"""Content by its id, names that point to it, and logs made of both."""
