"""What is in a picture, and whether it is what a prompt asks for."""
