"""Reaching a device, and the agent that runs there."""
