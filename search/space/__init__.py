"""The search space: its dimensions, points and starting points."""
