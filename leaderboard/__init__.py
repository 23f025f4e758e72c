"""Everything the public sees: the gate, cards, releases and the site."""
