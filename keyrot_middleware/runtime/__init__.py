"""Two loops without decisions: perform what a flow asks for, in threads or in tasks."""
