"""The coordinator of a study, its ledger and its sampler."""
