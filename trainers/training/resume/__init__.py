"""Runs that go on: their identity, and the states that they are continued from."""
