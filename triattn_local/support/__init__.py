"""What any program needs: files that are written whole, Ctrl-C, the terminal, work in turns. No word of models."""
