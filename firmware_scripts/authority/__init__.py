"""The fleet's certificate authority: who is a device, a gateway, a server, the broker, an observer."""
