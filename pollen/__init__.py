"""What all roles of Pollen share: messages and tensors on the wire, topics, the model bundle, settings."""

__version__ = "0.1.0"
