"""What a policy needs to learn from its own rollouts by a policy gradient."""
