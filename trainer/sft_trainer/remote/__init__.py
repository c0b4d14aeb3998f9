"""Models and data that lie in a store on the network, copied to the workspace once."""
