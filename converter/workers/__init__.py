"""Do one job to many samples in other processes."""
