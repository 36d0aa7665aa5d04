"""Models: from a name to a folder, from a folder to memory, and what is added to them."""
