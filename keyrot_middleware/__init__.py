"""A pool of Gemini API keys under the google-genai client you already have."""
