"""A package, so that pytest ends what this folder's fixtures started before it goes on."""
