"""A server for each kind of secret store, for the contract that all stores share."""
