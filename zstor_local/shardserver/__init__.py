"""`zstor shard serve`: a shard for daemons on other machines. It holds ciphertext only and checks a token on every request."""
