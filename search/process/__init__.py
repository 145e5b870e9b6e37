"""What every process of the project needs, whatever it does."""
