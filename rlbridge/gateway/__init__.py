"""The OpenAI-compatible server in front of a policy: any agent in, exact tokens out."""
