"""The layouts of the card and the site, and the site's static files; installed as `leaderboard.templates`."""
