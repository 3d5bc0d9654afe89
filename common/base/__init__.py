"""What everything stands on: settings, errors, files, devices, signals, background work."""
