"""Turn arrays into payloads and back."""
