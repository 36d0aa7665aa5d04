"""From run folders to what people look at. Imports no torch."""
