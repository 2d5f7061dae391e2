"""Weight transfers: how the policy's weights get from the trainer to vLLM servers."""
