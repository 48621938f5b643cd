"""Tables for readers, figures, and the page that holds them."""
