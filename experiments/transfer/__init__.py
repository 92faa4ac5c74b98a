"""Does what the attack learns transfer across architectures?"""
