"""Everything specific to google-genai: patch it, read its requests, send them with a pool key."""
