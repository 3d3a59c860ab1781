"""What is written for people to read, and the program that writes the generated parts of it."""
