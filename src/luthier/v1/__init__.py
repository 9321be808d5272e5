"""Generated from `proto/luthier/v1`; regenerate with `make proto`."""
