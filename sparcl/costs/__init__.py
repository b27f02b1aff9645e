"""What a run costs: FLOPs as executed, as planned and as published, and memory."""
