"""The original wire of the remote log: content and names over Twirp, for clients generated from the first .proto files."""
