"""Flashing and provisioning: the fleet's certificates, cards, first boot, software updates."""
