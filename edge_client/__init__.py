"""The device: sensors, online learner, trainer, outbox, MQTT session, vitals. Imports neither TensorFlow nor Flower."""
