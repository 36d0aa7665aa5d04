"""Many runs at once: how they are submitted, what became of them, and how they are continued."""
