"""What any part of the project may use. Nothing here imports torch."""
