"""Networks from records and back, pruning them and training them."""
