"""vLLM servers over HTTP: what is asked of them, what they must be, and the commands that start them."""
