"""Everything that knows google-genai: where calls are caught, read, and sent with another key."""
