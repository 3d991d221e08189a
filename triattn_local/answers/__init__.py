"""The text between program and model: messages on the way in, thinking and calls of tools on the way out."""
