"""What any part of the project may use. No torch."""
