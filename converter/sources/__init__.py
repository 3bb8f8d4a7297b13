"""Take files from the folder and turn them into payloads."""
