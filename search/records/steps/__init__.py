"""The steps that recipes are made of, as frozen values."""
