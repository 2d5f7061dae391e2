"""What a judge model is asked, how its server is called, where replies are kept, and which grade a reply gives."""
