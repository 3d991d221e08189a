"""What is shown, one widget a file."""
