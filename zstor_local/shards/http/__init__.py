"""A shard on another machine, reached over HTTP."""
