"""The pages of Subbrains Manager: what a person sees in the browser, and the buttons there."""
