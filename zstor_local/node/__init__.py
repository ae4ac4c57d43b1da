"""Nodes: programs that use the content store and the name system over the socket, as the actors of a remote log do."""
