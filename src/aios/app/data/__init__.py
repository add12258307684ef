"""Files of passages as people choose and look at them."""
