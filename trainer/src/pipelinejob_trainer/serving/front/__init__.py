"""The HTTP front: OpenAI's completions and chat completions, on the first stage."""
