"""Built-in worlds: procedural data whose prompts are decided exactly by a program.

A world gives prompts, pictures and a verifier, so that a claim such as "the reward went up because
the pictures got better" can be checked without a human and without a network.
"""
