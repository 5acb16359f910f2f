"""Pure functions from a model's text to reasoning, content and tool calls. Refuses nothing."""
