"""Where the files of base models come from and where they are kept."""
