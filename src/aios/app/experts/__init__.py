"""Jobs on experts that exist: what the registry has, creating, forgetting, exporting."""
