"""Which steps a study takes, and in which order."""
