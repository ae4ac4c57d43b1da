"""Remote logs: entries in pages, the newest page under a name, the older ones in the content store."""
