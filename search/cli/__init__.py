"""What the command lines share: composing, help, error lines, the live display."""
