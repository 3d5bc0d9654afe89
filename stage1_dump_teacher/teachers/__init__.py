"""Teachers: networks that run once over every scan."""
