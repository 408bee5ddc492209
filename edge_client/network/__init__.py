"""The MQTT session, and the outbox whose updates it carries."""
