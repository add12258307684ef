"""Charts as inline SVG, and what the HTML reports share."""
