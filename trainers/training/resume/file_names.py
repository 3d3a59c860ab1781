"""The files of a run's folder that say what it is and how far it is."""

IDENTITY = "identity.json"
RESULT = "result.json"
LOCK = "lock"
STATES = "state"  # a folder
