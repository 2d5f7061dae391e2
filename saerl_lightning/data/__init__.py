"""The operations on the plan: filtering, clustering, curriculum, mixing; and the datamodule that applies them."""
