"""Self-edits: generating them for a file, keeping, finding and inspecting them."""
