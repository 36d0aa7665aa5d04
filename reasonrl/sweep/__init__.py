"""Many runs at once: who submits them, what has become of them, and how to go on."""
