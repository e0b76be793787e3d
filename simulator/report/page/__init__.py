"""The report as one HTML page that works offline: ``page.write_page``; charts are drawn by ``static/page.js``."""
