"""The bridge between the MQTT broker and the server. It holds nothing that matters: kill it at any moment."""
