"""What a run computes on: device, processes, files."""
