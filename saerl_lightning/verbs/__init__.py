"""The command line's own verbs beside Lightning's: `plan` and `label`, and the trainer that runs them."""
