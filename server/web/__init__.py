"""The operator's view of a fleet: JSON, metrics and pages, served by the server process."""
