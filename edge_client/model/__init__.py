"""The model on the device: its bundle, the weights it knows, and those it keeps to itself."""
