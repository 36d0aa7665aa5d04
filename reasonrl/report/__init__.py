"""What people look at, made from run folders. This package imports no torch."""
