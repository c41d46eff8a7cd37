"""What a run stands on: files, logs, checkpoints, hosts, devices."""
