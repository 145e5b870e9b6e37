"""Finding which channels of a network go together, and removing them."""
