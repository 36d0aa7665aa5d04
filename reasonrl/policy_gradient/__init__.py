"""What learns from its own rollouts by a policy gradient."""
