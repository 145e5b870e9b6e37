"""Times models on their device."""
