"""The foundation of a run: files, logs, checkpoints, hosts, devices."""
