"""Times models on their device; knows nothing of how models or trials come to be."""
