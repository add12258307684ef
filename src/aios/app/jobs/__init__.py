"""Jobs: commands of the program that run on their own, whoever watches them."""
