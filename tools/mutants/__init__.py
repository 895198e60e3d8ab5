"""Mutation testing by sampling: draw faults at random, see how many of them the tests catch."""
