"""This machine: the doctor, and how busy it is."""
