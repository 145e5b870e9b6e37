"""Runs steps somewhere and remembers what they answered; knows nothing of what a step means."""
